//! A program in a terminal: a pseudo-terminal, and a screen that takes what the program writes as a terminal would.

use std::io::{Read as _, Write};
use std::num::NonZeroU16;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use portable_pty::{Child, CommandBuilder, ExitStatus, PtyPair, PtySize, native_pty_system};
use rustix::process::{Pid, Signal, kill_process};
use vt100::Parser;

use crate::process::dying_with_us;
use crate::until;

/// A program in a terminal of its own. Killed on drop.
pub struct Tty {
    pair: PtyPair,
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    screen: Arc<Mutex<Parser>>,
}

impl Tty {
    /// Starts a program in a terminal of this size.
    pub fn start(command: &Command, [columns, rows]: [u16; 2]) -> anyhow::Result<Self> {
        let pair = native_pty_system().openpty(size(columns, rows))?;
        let screen = Parser::new(some(rows)?, some(columns)?, 0);
        let child = pair.slave.spawn_command(in_terminal(command))?;
        let keys = pair.master.take_writer()?;
        let mut output = pair.master.try_clone_reader()?;
        let screen = Arc::new(Mutex::new(screen));
        let drawn = screen.clone();
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                locked(&drawn).process(&bytes[..length]);
            }
        });
        Ok(Self {
            pair,
            child,
            keys,
            screen,
        })
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// Changes the size.
    pub fn resize(&self, [columns, rows]: [u16; 2]) -> anyhow::Result<()> {
        locked(&self.screen).screen_mut().set_size(some(rows)?, some(columns)?);
        self.pair.master.resize(size(columns, rows))
    }

    /// The lines of the screen.
    pub fn lines(&self) -> Vec<String> {
        let screen = locked(&self.screen);
        let (_, columns) = screen.screen().size();
        screen.screen().rows(0, columns.get()).collect()
    }

    /// Waits until the lines of the screen are as wanted.
    pub async fn shows(&self, limit: Duration, what: &str, wanted: impl Fn(&[String]) -> bool) {
        let shown = until(limit, || wanted(&self.lines())).await;
        assert!(shown, "{what}: not within {limit:?}:\n{}", self.lines().join("\n"));
    }

    /// Whether the program has taken the terminal over: another screen, without a cursor.
    pub fn is_taken(&self) -> (bool, bool) {
        let screen = locked(&self.screen);
        (screen.screen().alternate_screen(), screen.screen().hide_cursor())
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.process_id().context("the program has ended")?;
        let id = Pid::from_raw(i32::try_from(id)?).context("no process has this id")?;
        Ok(kill_process(id, signal)?)
    }

    /// The exit status. `None` if the program does not end within the limit.
    pub async fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        until(limit, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .await;
        status
    }

    /// Runs another program in the same terminal once the first one has ended. What it says is on the screen.
    pub fn then(&mut self, command: &Command) -> anyhow::Result<()> {
        self.child = self.pair.slave.spawn_command(in_terminal(command))?;
        Ok(())
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the terminal shows:\n{}\n---", self.lines().join("\n"));
        }
    }
}

fn locked(screen: &Mutex<Parser>) -> MutexGuard<'_, Parser> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn some(cells: u16) -> anyhow::Result<NonZeroU16> {
    NonZeroU16::new(cells).context("a terminal has at least one column and one line")
}

fn size(columns: u16, rows: u16) -> PtySize {
    PtySize {
        rows,
        cols: columns,
        pixel_width: 0,
        pixel_height: 0,
    }
}

fn in_terminal(command: &Command) -> CommandBuilder {
    let command = dying_with_us(command);
    let mut within = CommandBuilder::new(command.get_program());
    within.args(command.get_args());
    within.env("TERM", "xterm-256color");
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => within.env(key, value),
            None => within.env_remove(key),
        }
    }
    within
}
