//! To which step of an event's life a function belongs. What counts is the innermost function; in the kernel, also what
//! called it.

use std::fmt;

/// What belongs to no step.
pub(super) const OTHER: &str = "other";
const OTHER_KERNEL: &str = "kernel: other";
/// Debian's Postgres names only the functions that its extensions may call. With its debug symbols, this is little.
const NAMELESS_POSTGRES: &str = "Postgres, functions without name";
const WASM: &str = "module (WebAssembly)";

/// A function of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    name: &'a str,
    /// The file that it is in.
    file: &'a str,
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.rsplit('/').next().unwrap_or(self.file);
        write!(f, "{} ({file})", self.name)
    }
}

/// A step, and parts of the names of its functions.
type Step = (&'static str, &'static [&'static str]);

/// The steps in the kernel, by what any of its functions is called. The first that fits counts.
const IN_KERNEL: &[Step] = &[
    (
        "kernel: memory",
        &["page_fault", "sys_madvise", "sys_munmap", "sys_mmap", "sys_brk"],
    ),
    (
        "kernel: sockets",
        &[
            "tcp_",
            "sock_",
            "sys_send",
            "sys_recv",
            "inet_",
            "net_rx",
            "unix_stream",
        ],
    ),
    (
        "kernel: disk and page cache",
        &[
            "sync",
            "ext4",
            "xfs",
            "btrfs",
            "ovl_",
            "shmem",
            "blk_",
            "vfs_write",
            "vfs_read",
            "iomap",
            "jbd2",
        ],
    ),
    (
        "kernel: waiting, scheduling",
        &[
            "futex",
            "epoll",
            "sys_poll",
            "schedule",
            "nanosleep",
            "timer",
            "eventfd",
            "sched_",
            "try_to_wake_up",
        ],
    ),
];

/// The steps in Postgres' own files.
const IN_POSTGRES: &[Step] = &[
    ("hashing", &["sha256", "cryptohash"]),
    (
        "allocation",
        &[
            "AllocSet",
            "palloc",
            "pfree",
            "MemoryContext",
            "GenerationAlloc",
            "repalloc",
        ],
    ),
    ("WAL", &["XLog", "xlog", "XLOG", "crc32c"]),
    (
        "index insertion",
        &["_bt_", "btinsert", "index_", "FormIndexDatum", "ExecInsertIndexTuples"],
    ),
    (
        "heap, buffers, locks",
        &[
            "heap_",
            "Buffer",
            "PageAdd",
            "LWLock",
            "LockAcquire",
            "LockRelease",
            "hash_search",
            "visibilitymap",
            "Snapshot",
            "HeapTuple",
            "Xact",
            "TransactionId",
            "SimpleLru",
        ],
    ),
    (
        "SQL executor and functions",
        &[
            "Exec",
            "ExprEval",
            "CheckExpr",
            "plpgsql",
            "exec_",
            "SPI_",
            "fmgr",
            "FunctionCall",
            "slot_",
            "tts_",
            "bytea",
            "text",
            "array_",
            "int8",
            "Datum",
            "datum",
            "xpanded",
            "CachedPlan",
            "getattr",
            "hash_",
            "toast",
            "varstr",
        ],
    ),
    (
        "SQL parser and planner",
        &[
            "plan",
            "pars",
            "yylex",
            "base_yy",
            "create_",
            "eval_const",
            "expression_",
            "relation",
            "build_",
            "SearchCatCache",
            "SearchSysCache",
            "add_path",
            "cost_",
            "query_tree",
            "match_",
            "copyObject",
            "equal",
            "list_",
            "lappend",
            "new_list",
            "bms_",
            "pg_strtok",
            "nodeRead",
            "stringToNode",
            "SearchPath",
        ],
    ),
    (
        "wire of Postgres",
        &["pq_", "secure_", "PostgresMain", "printtup", "ReadCommand"],
    ),
    (NAMELESS_POSTGRES, &["[unknown]"]),
];

/// The steps in every file that has no list of its own, which includes the libraries of the system.
const ELSEWHERE: &[Step] = &[
    (
        "hashing",
        &["sha2::", "sha256", "blake3", "EVP_", "ERR_clear_error", "libcrypto"],
    ),
    (
        "seals and tokens",
        &["ring_core", "ring::", "ecp_nistz", "p256", "bn_mul", "ecdsa"],
    ),
    (
        "compression",
        &["zlib", "deflate", "inflate", "ZSTD", "zstd", "brotli", "lz4", "LZ4"],
    ),
    ("SQLite", &["sqlite", "pcache1", "memjrnl"]),
    (
        "allocation",
        &[
            "malloc",
            "_int_free",
            "cfree",
            "free (",
            "realloc",
            "calloc",
            "alloc::alloc",
            "mi_",
            "tcache",
        ],
    ),
    (
        "copying",
        &["memcpy", "memmove", "memset", "memcmp", "strcmp", "strlen", "strncpy"],
    ),
    ("wire of Postgres", &["sqlx"]),
    (
        "encoding, decoding",
        &["prost", "bsatn", "sats", "serde", "sync_proto", "tungstenite", "utf8"],
    ),
    (
        "bridge's decisions",
        &["sync_lane", "sync_bridge", "sync_authority", "sync_stdb"],
    ),
    ("client's decisions", &["sync_client"]),
    (
        "SpacetimeDB and its SDK",
        &["spacetimedb", "wasmtime", "AHasher", "sync_bindings"],
    ),
    (
        "runtime of tasks",
        &[
            "tokio",
            "futures",
            "parking_lot",
            "mio::",
            "std::sync",
            "crossbeam",
            "pthread",
            "clock_gettime",
            "vdso",
            "epoll",
            "syscall",
        ],
    ),
];

impl<'a> Frame<'a> {
    /// `address name (file)`
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (_, rest) = line.trim().split_once(' ')?;
        let (name, file) = rest.rsplit_once(" (")?;
        Some(Self {
            name,
            file: file.trim_end_matches(')'),
        })
    }

    fn is_kernel(&self) -> bool {
        self.file.starts_with("[kernel") || self.file.starts_with("[guest.kernel")
    }

    /// Code that was made at run time lies in no file that was built.
    fn is_made_at_run_time(&self) -> bool {
        self.file.starts_with("//anon") || self.file.starts_with("[JIT]") || self.file.ends_with(".map")
    }
}

/// The step of a sample.
pub(super) fn step_of(frames: &[Frame<'_>]) -> &'static str {
    let Some(innermost) = frames.first() else {
        return OTHER;
    };
    let first = |steps: &'static [Step], name: &str| {
        let step = steps
            .iter()
            .find(|(_, parts)| parts.iter().any(|part| name.contains(part)));
        step.map(|(step, _)| *step)
    };
    if innermost.is_kernel() {
        let names: Vec<_> = frames
            .iter()
            .filter(|frame| frame.is_kernel())
            .map(|frame| frame.name)
            .collect();
        return first(IN_KERNEL, &names.join(" ")).unwrap_or(OTHER_KERNEL);
    }
    if innermost.is_made_at_run_time() {
        return WASM;
    }
    let steps = if innermost.file.contains("postgres") {
        IN_POSTGRES
    } else {
        ELSEWHERE
    };
    first(steps, &innermost.to_string()).unwrap_or(OTHER)
}
