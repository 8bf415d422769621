//! The running node: the engine's controller, the keys and the list of databases of one data directory.
//!
//! It opens the directory, launches the databases in it and shuts them down. It knows nothing of HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use spacetimedb::auth::JwtKeys;
use spacetimedb::auth::token_validation::{DefaultValidator, new_validator};
use spacetimedb::client::ClientActorIndex;
use spacetimedb::config::{CertificateAuthority, MetadataFile};
use spacetimedb::db::persistence::LocalPersistenceProvider;
use spacetimedb::db::{self, Storage};
use spacetimedb::energy::NullEnergyMonitor;
use spacetimedb::host::{DiskStorage, HostController, HostRuntimeConfig, IdcConfig, ModuleHost};
use spacetimedb::util::jobs::JobCores;
use spacetimedb::worker_metrics::spawn_bsatn_rlb_pool_stats;
use spacetimedb_paths::FromPathUnchecked as _;
use spacetimedb_paths::cli::ConfigDir;
use spacetimedb_paths::server::{PidFile, PidFileError, ServerDataDir};
use spacetimedb_paths::standalone::StandaloneDataDirExt as _;
use tokio::sync::watch;

use crate::auth::LOCAL_ISSUER;
use crate::error::Failure;
use crate::registry::{Entry, NameOrIdentity, Registry};

/// How long a database may take to flush its log and stop.
const EXIT_WITHIN: Duration = Duration::from_secs(10);

/// The state that every request handler gets.
pub(crate) type App = Arc<Node>;

pub(crate) struct Node {
    pub(crate) registry: Registry,
    /// Held while a database is published or deleted, so that this happens one at a time.
    pub(crate) publishing: tokio::sync::Mutex<()>,
    pub(crate) programs: Arc<DiskStorage>,
    pub(crate) hosts: HostController,
    pub(crate) clients: ClientActorIndex,
    pub(crate) keys: JwtKeys,
    pub(crate) validator: DefaultValidator,
    /// Held as long as the process uses the directory.
    _claim: PidFile,
}

/// Takes the data directory for this process alone.
pub(crate) fn claim(data_dir: &ServerDataDir) -> anyhow::Result<PidFile> {
    let dir = data_dir.0.display();
    data_dir.pid_file().map_err(|e| match e {
        PidFileError::Exists { pid: Some(pid) } => {
            anyhow::anyhow!("another host (process {pid}) is using the data directory {dir}: stop it, or give this one another directory")
        }
        PidFileError::Exists { pid: None } => {
            anyhow::anyhow!("another host is using the data directory {dir}: stop it, or give this one another directory")
        }
        e => anyhow::Error::from(e).context(format!("cannot use the data directory {dir}")),
    })
}

impl Node {
    /// Opens the directory without launching anything. `port` is where this node will listen.
    pub(crate) async fn open(dir: ServerDataDir, claim: PidFile, port: u16, cores: JobCores) -> anyhow::Result<Self> {
        let dir = Arc::new(dir);
        let path = dir.metadata_toml();
        let mut metadata = MetadataFile::new("spacetime-sync-host");
        if let Some(found) = MetadataFile::read(&path).context("cannot read metadata.toml")? {
            metadata = found.check_compatibility_and_update(metadata, path.as_ref())?;
        }
        metadata.write(&path).context("cannot write metadata.toml")?;

        let keys = CertificateAuthority::in_cli_config_dir(&ConfigDir::from_path_unchecked(dir.0.join("keys")))
            .get_or_create_keys()
            .context("cannot read or make the signing keys")?;
        let programs = Arc::new(DiskStorage::new(dir.program_bytes().0).await?);
        let registry = Registry::open(&dir.0)?;
        let hosts = HostController::new(
            dir.clone(),
            db::Config {
                storage: Storage::Disk,
                page_pool_max_size: None,
            },
            HostRuntimeConfig::default(),
            programs.clone(),
            Arc::new(NullEnergyMonitor),
            Arc::new(()),
            Arc::new(LocalPersistenceProvider::new(dir)),
            cores,
        );
        spawn_bsatn_rlb_pool_stats("host".to_owned(), hosts.bsatn_rlb_pool.clone());
        // The engine launches modules only once it knows how databases reach one another.
        hosts.set_idc_config(IdcConfig {
            http_port: port,
            token_signer: Arc::new(keys.clone()),
        })?;
        Ok(Self {
            registry,
            publishing: Default::default(),
            programs,
            hosts,
            clients: ClientActorIndex::new(),
            validator: new_validator(keys.public.clone(), LOCAL_ISSUER.into()),
            keys,
            _claim: claim,
        })
    }

    /// Launches every database.
    pub(crate) async fn launch_all(&self) -> anyhow::Result<()> {
        for entry in self.registry.all() {
            let started = Instant::now();
            self.launch(&entry)
                .await
                .with_context(|| format!("cannot start database {}", entry.identity))?;
            tracing::info!("database {} is up after {:?}", entry.identity, started.elapsed());
        }
        Ok(())
    }

    /// Replays a database's log and starts its module. An empty database is first set up with its initial program,
    /// durably.
    pub(crate) async fn launch(&self, entry: &Entry) -> anyhow::Result<()> {
        let launched = self
            .hosts
            .get_or_launch_module_host_with_bootstrap(entry.database(), entry.replica)
            .await?;
        match launched.bootstrap_completion {
            Some(bootstrap) => bootstrap.wait().await,
            None => Ok(()),
        }
    }

    /// Flushes and stops every database.
    pub(crate) async fn shut_down(&self) -> anyhow::Result<()> {
        for replica in self.hosts.managed_replicas() {
            self.hosts.exit_module_host(replica, EXIT_WITHIN).await?;
        }
        Ok(())
    }

    /// Stops one database, disconnecting its clients.
    pub(crate) async fn stop(&self, entry: &Entry) -> Result<(), Failure> {
        Ok(self.hosts.exit_module_host(entry.replica, EXIT_WITHIN).await?)
    }

    /// Whether every database runs and can write to its log. Waits while a database is created, replaced or removed.
    pub(crate) async fn is_whole(&self) -> bool {
        let _as_it_is = self.publishing.lock().await;
        for entry in self.registry.all() {
            let log = match self.module(&entry).await {
                Ok(module) => module.durable_tx_offset(),
                Err(_) => None,
            };
            if log.is_none_or(|log| log.get().is_err()) {
                return false;
            }
        }
        true
    }

    pub(crate) fn find(&self, wanted: &NameOrIdentity) -> Result<Entry, Failure> {
        self.registry.find(wanted).ok_or_else(|| match wanted {
            NameOrIdentity::Name(name) => Failure::NoSuchName(name.clone()),
            NameOrIdentity::Identity(_) => Failure::NoSuchDatabase,
        })
    }

    /// The module that a database runs at this moment.
    pub(crate) async fn module(&self, entry: &Entry) -> Result<ModuleHost, Failure> {
        Ok(self.watch_module(entry).await?.borrow().clone())
    }

    /// The module of a database, and every module that replaces it.
    ///
    /// It launches nothing, so that a request does not revive a database that is being removed.
    pub(crate) async fn watch_module(&self, entry: &Entry) -> Result<watch::Receiver<ModuleHost>, Failure> {
        let running = self.hosts.watch_module_host(entry.replica).await;
        running.map_err(|_| Failure::Unavailable("The database is being started, updated or removed: try again."))
    }
}
