//! The terminal itself: takes it over, and gives it back however the program ends, short of SIGKILL.

use std::io::{IsTerminal as _, Stdout, stdin, stdout};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, ensure};
use crossterm::cursor::{Hide, Show};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

/// The terminal as long as it is ours.
pub(crate) struct Tty {
    pub(crate) terminal: Terminal<CrosstermBackend<Stdout>>,
    taken: Taken,
}

/// Whether the terminal is taken over. It is given back once: a second time would put the cursor back to where it was.
#[derive(Clone, Default)]
struct Taken(Arc<AtomicBool>);

impl Tty {
    /// Takes the terminal over, for the thread that calls.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(stdout()));
        let terminal = terminal.context("the terminal does not say how large it is")?;
        let taken = Taken::default();
        tell_panics_elsewhere(taken.clone());
        enable_raw_mode().context("the terminal does not pass single keys on")?;
        taken.0.store(true, Ordering::Relaxed);
        // From here on it is given back.
        let tty = Self { terminal, taken };
        execute!(stdout(), EnterAlternateScreen, Hide).context("the terminal takes no output")?;
        Ok(tty)
    }
}

/// Refuses to go on if there is no terminal.
pub(crate) fn is_there() -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal() && stdout().is_terminal(),
        "expected a terminal as input and output, found a file or a pipe: run the program in a terminal"
    );
    Ok(())
}

impl Drop for Tty {
    fn drop(&mut self) {
        self.taken.give_back();
    }
}

impl Taken {
    fn give_back(&self) {
        if self.0.swap(false, Ordering::Relaxed) {
            // A terminal that is gone needs nothing more.
            let _ = execute!(stdout(), LeaveAlternateScreen, Show);
            let _ = disable_raw_mode();
        }
    }
}

/// Keeps panics from writing over the screen. One of this thread ends the program, so the terminal is given back before it is
/// told. The client catches those of its own threads and goes on: they only go to the log.
fn tell_panics_elsewhere(taken: Taken) {
    let this = thread::current().id();
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().id() == this {
            taken.give_back();
            tell(panic);
        } else {
            tracing::error!("{panic}");
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use portable_pty::{CommandBuilder, PtySize, native_pty_system};

    use super::*;

    /// Says to the test below that it runs in a terminal.
    const WITHIN: &str = "SYNC_TERMINAL_OF_A_TEST";

    /// The test starts itself in a pseudo-terminal, where it takes the terminal over and panics.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        if std::env::var_os(WITHIN).is_some() {
            let _tty = Tty::take().unwrap();
            // The client catches such a one, and the screen stays.
            thread::spawn(|| panic!("elsewhere")).join().unwrap_err();
            panic!("here");
        }
        let size = PtySize {
            rows: 24,
            cols: 80,
            pixel_width: 0,
            pixel_height: 0,
        };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "tty::tests::a_panic_gives_the_terminal_back_before_it_is_told",
            "--nocapture",
        ]);
        command.env(WITHIN, "1");
        let mut child = pair.slave.spawn_command(command).unwrap();
        let mut output = pair.master.try_clone_reader().unwrap();
        // A terminal whose last holder has gone cannot be read to its end on every system: it reports an error there.
        drop(pair.slave);
        let (mut said, mut bytes) = (Vec::new(), [0; 4_096]);
        while let Ok(length @ 1..) = output.read(&mut bytes) {
            said.extend_from_slice(&bytes[..length]);
        }
        assert!(!child.wait().unwrap().success());
        let said = String::from_utf8_lossy(&said);
        let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text:?} is not in {said:?}"));
        let (taken, given_back) = (at("\x1b[?1049h"), at("\x1b[?1049l"));
        assert!(taken < given_back && given_back < at("\x1b[?25h"), "{said:?}");
        assert!(at("\x1b[?25h") < at("here"), "{said:?}");
        assert!(!said.contains("elsewhere"), "{said:?}");
    }
}
