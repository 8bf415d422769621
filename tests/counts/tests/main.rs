//! The figures in the tree hold.

mod counts {
    use std::process::Command;

    /// Fails where valgrind is missing: a ratchet that nobody turns is none.
    #[test]
    #[cfg_attr(
        not(all(target_os = "linux", target_arch = "x86_64")),
        ignore = "the figures are those of Linux on x86-64"
    )]
    fn no_hot_path_takes_a_tenth_more_or_less_than_its_figure() {
        let counts = Command::new(env!("CARGO_BIN_EXE_counts")).output().unwrap();
        let said = [counts.stdout, counts.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        eprintln!("{}", said.join("\n"));
        assert!(counts.status.success(), "{}", said[1]);
    }
}
