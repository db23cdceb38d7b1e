//! What holds for every subcommand: wrong usage, wrong paths, closed pipes, help.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};

use super::common::need::{Need, require};
use super::{Bus, PROGRAM, assert_fails, assert_is_usage, code, end_quietly, stderr};

#[test]
fn a_closed_pipe_is_not_an_error() {
    let bus = Bus::new();
    bus.numbered("q", 20_000);
    for args in [&["tail", "-n", "+1", "q"][..], &["tail", "-n", "+1", "--format", "bin", "q"]] {
        let mut child = bus.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 10]).unwrap();
        end_quietly(child);
    }
    for args in [
        &["inspect", "q"][..],
        &["ls", "."],
        &["man"],
        &["completions", "bash"],
        &["watch", "."],
        &["merge", "--all-queues", "."],
        &["merge", "-f", "."],
        &["metrics", "."],
        &["doctor", "."],
        &["retain", "q"],
        &["top", "--once", "--interval", "100ms", "."],
    ] {
        let child = bus.command(args).stdout(closed_pipe()).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, String::new()), "{args:?}");
    }
}

/// The write end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_full_disk_at_stdout_is_an_error() {
    let bus = Bus::new();
    bus.append("q", "txt", b"x\n");
    let commands = "tail q,inspect q,ls .,man,merge --all-queues .,doctor .,metrics .,rm -n q,retain q,watch --once .,help,--version";
    for args in commands.split(',').map(|command| command.split(' ').collect::<Vec<_>>()) {
        let args = &args[..];
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = bus.command(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_fails(&output, &["standard output: cannot write: No space left on device"]);
    }
}

#[test]
fn wrong_paths_are_reported() {
    let bus = Bus::new();
    fs::create_dir(bus.path("plain")).unwrap();
    fs::write(bus.path("file"), "").unwrap();
    for (place, part) in
        [("missing", "chron-cli: missing: "), ("plain", "chron-cli: plain: not a queue"), ("file", "chron-cli: file: ")]
    {
        for args in [
            &["tail", place][..],
            &["inspect", place],
            &["readers", place],
            &["rm", place],
            &["readers", place, "add", "x"],
            &["retain", place],
        ] {
            assert_fails(&bus.run(args), &[part]);
        }
    }
    for command in ["watch", "merge", "top"] {
        let missing = bus.run(&[command, "missing"]);
        assert_fails(&missing, &["chron-cli: missing: cannot list", "No such file or directory"]);
        assert_fails(&bus.run(&[command, "file"]), &["chron-cli: file: cannot list", "Not a directory"]);
    }
    assert_fails(&bus.run(&["ls", "missing"]), &["chron-cli: missing: cannot list: No such file or directory"]);
    assert_fails(&bus.run(&["umount", "plain"]), &["plain: not mounted"]);
    assert_fails(&bus.run(&["umount", "missing"]), &["missing: No such file"]);
}

#[test]
fn a_directory_of_queues_is_told_from_a_queue() {
    let bus = Bus::new();
    for name in ["bus/eu/a", "bus/b", "bus/c", "bus/d"] {
        bus.append(name, "txt", b"x\n");
    }
    let below = "bus: not a queue: the directory holds no control.meta and no segments; queues lie below it: \
                 bus/b, bus/c, bus/d, ...";
    for command in ["tail", "inspect", "retain", "readers"] {
        assert_fails(&bus.run(&[command, "bus"]), &[below]);
    }
    assert_fails(&bus.run(&["tail", "bus/eu"]), &["queues lie below it: bus/eu/a\n"]);
}

#[test]
fn wrong_usage_is_2() {
    let bus = Bus::new();
    for args in [
        &[][..],
        &["tial"],
        &["tail"],
        &["tail", "q", "--formt", "txt"],
        &["tail", "q", "--format", "xml"],
        &["tail", "q", "-n", "ten"],
        &["append"],
        &["create"],
        &["inspect", "q", "extra"],
        &["readers", "q", "seek", "alice"],
        &["mount", "only-one"],
        &["retain"],
        &["tail", "q", "--grep", "("],
        &["man", "tial"],
        &["merge", ".", "--all"],
        &["bench", "--messages", "0"],
        &["completions", "cmd.exe"],
        &["--color", "sometimes", "ls", "."],
    ] {
        let output = bus.run(args);
        let said = stderr(&output);
        assert_eq!(code(&output), 2, "{args:?}: {said}");
        assert_eq!(output.stdout, b"");
        assert!(args.is_empty() || said.starts_with("chron-cli: ") && said.lines().count() == 1, "{args:?}: {said}");
    }
    assert_eq!(fs::read_dir(bus.0.path()).unwrap().count(), 0);
}

#[test]
fn a_wrong_number_is_explained_also_a_negative_one() {
    let bus = Bus::new();
    let types = "is not a message type; use a number from 0 to 65534";
    for (args, said) in [
        ("tail q -n -2", "\"-2\" is not a number of messages; use 10, or +10 for all from the tenth on"),
        ("tail q -n ten", "\"ten\" is not a number of messages"),
        ("tail q --from -3", "\"-3\" is not a sequence number"),
        ("tail q --type x", types),
        ("tail q --type 70000", types),
        ("tail q --type 65535", types),
        ("tail q --type -1", types),
        ("append q --type -1", types),
        ("send q x --type -1", types),
        ("tail q --replay -2", "\"-2\" is not a speed"),
        ("replay q r --speed -2", "\"-2\" is not a speed"),
        ("append q --max-ahead -1h", "\"-1h\" is not a time span"),
        ("top --interval -1s", "\"-1s\" is not a time span"),
        ("create q --retain-bytes -1GiB", "\"-1GiB\" is not a size"),
        ("create q --retain-age -1d", "\"-1d\" is not a time span"),
        ("set q --retain-segments -1", "\"-1\" is not a whole number"),
        ("bench --messages 0", "\"0\" is not a number from 1 to 1000000000"),
        ("bench --messages x", "\"x\" is not a number from 1 to 1000000000"),
        ("bench --rate -1", "\"-1\" is not a number from 1 to 10000000"),
        ("bench --payload-bytes -8", "\"-8\" is not"),
    ] {
        let output = bus.run(&args.split(' ').collect::<Vec<_>>());
        assert_is_usage(&output, &[said]);
        assert!(!stderr(&output).contains("unexpected"), "{args}: {}", stderr(&output));
    }
}

#[test]
fn completions_and_manual_pages_cover_every_subcommand() {
    let bus = Bus::new();
    let names = "mount umount create set append send replay tail inspect ls readers retain rm merge metrics watch top \
                 doctor bench relay archive export completions man";
    let subcommands: Vec<&str> = names.split(' ').collect();
    for shell in ["bash", "zsh", "fish"] {
        let script = bus.stdout(&["completions", shell]);
        assert!(subcommands.iter().all(|name| script.contains(name)), "{shell}");
    }
    assert!(bus.stdout(&["man"]).contains(".TH chron-cli 1"));
    for name in &subcommands {
        let page = bus.stdout(&["man", name]);
        assert!(page.contains(&format!(".TH chron-cli-{name} 1")), "{page}");
        for section in ["SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            assert!(
                page.lines()
                    .any(|line| line == format!(".SH {section}").as_str() || line == format!(".SH \"{section}\"")),
                "{name}: {section}"
            );
        }
    }
    fs::create_dir(bus.path("man")).unwrap();
    bus.stdout(&["man", "--all", "man"]);
    assert_eq!(fs::read_to_string(bus.path("man/chron-cli-tail.1")).unwrap(), bus.stdout(&["man", "tail"]));
    assert!(fs::read_dir(bus.path("man")).unwrap().count() > subcommands.len());
    assert_fails(
        &bus.run(&["man", "--all", "missing"]),
        &["missing/chron-cli.1", "No such file", "; first: mkdir -p missing\n"],
    );
}

#[test]
fn as_a_helper_of_mount_8_it_has_other_exit_codes() {
    let bus = Bus::new();
    fs::create_dir(bus.path("bus")).unwrap();
    fs::create_dir(bus.path("mnt")).unwrap();
    for name in ["mount.chronfs", "mount.fuse.chronfs"] {
        std::os::unix::fs::symlink(PROGRAM, bus.path(name)).unwrap();
        let run = |args: &[&str]| {
            let output = Command::new(bus.path(name)).args(args).current_dir(bus.0.path()).output().unwrap();
            code(&output)
        };
        assert_eq!(run(&["bus"]), 1, "usage");
        assert_eq!(run(&["bus", "mnt", "-q"]), 1, "usage");
        assert_eq!(run(&["bus", "mnt", "-fv", "-o", "ro,noauto,nofail,_netdev,x-systemd.automount"]), 0, "fake");
        assert_eq!(run(&["missing", "mnt", "-o", "rw"]), 32, "failed");
        assert_eq!(run(&["bus", "missing", "-o", "rw"]), 32, "failed");
    }
}

#[test]
fn bash_completes() {
    // Ends as bash does: where the function leaves nothing, `-o default` means file names.
    let script = r#"
        source <("$1" completions bash)
        read -ra COMP_WORDS <<< "$2"
        [[ $2 != *' ' ]] || COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) word=${COMP_WORDS[-1]}
        _chron__cli chron-cli "$word" "${COMP_WORDS[-2]}"
        [[ ${COMPREPLY[*]} || $(complete -p chron-cli) != *'-o default'* ]] || COMPREPLY=($(compgen -f -- "$word"))
        printf '%s\n' "${COMPREPLY[@]}""#;
    assert_completes(&["bash", "-c", script, "bash"]);
}

#[test]
fn zsh_completes() {
    if require(Need::Shell("zsh")) {
        assert_completes(&["zsh", "-f", "-c", include_str!("complete.zsh"), "zsh"]);
    }
}

#[test]
fn fish_completes() {
    if require(Need::Shell("fish")) {
        let script = "$argv[1] completions fish | source; complete -C $argv[2]";
        assert_completes(&["fish", "--no-config", "-c", script]);
    }
}

/// `shell` is run with the program and a line to complete, in a directory with one file, and prints the completions.
#[track_caller]
fn assert_completes(shell: &[&str]) {
    let bus = Bus::new();
    fs::create_dir(bus.path("here")).unwrap();
    fs::write(bus.path("here/file"), "").unwrap();
    for (line, expected) in [
        ("chron-cli ap", "append"),
        ("chron-cli help ta", "tail"),
        ("chron-cli man ta", "tail"),
        ("chron-cli tail --fo", "--follow --format"),
        ("chron-cli tail --format j", "jsonl"),
        ("chron-cli tail ", "file"),
        ("chron-cli tail -f fi", "file"),
        ("chron-cli readers q s", "seek"),
        ("chron-cli completions ", "bash elvish fish powershell zsh"),
    ] {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60"]).args(shell).args([PROGRAM, line]).stdin(Stdio::null());
        let output = command.current_dir(bus.path("here")).env("HOME", bus.0.path()).output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, String::new()), "{line}");
        let printed = String::from_utf8(output.stdout).unwrap();
        // fish adds a description.
        let words: BTreeSet<_> = printed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(words, expected.split(' ').collect(), "{line}");
    }
}

#[test]
fn a_program_of_its_own_is_run_from_beside_chron_cli_or_its_package_named() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("chron-cli");
    // Not by this process: a child that another test starts would have it open for writing.
    assert!(Command::new("cp").args([PROGRAM.as_ref(), program.as_os_str()]).status().unwrap().success());
    for (command, name, summary, package, source) in [
        ("relay", "chron-relay", "Relay a queue to another host", "package chronfs-relay", "crates/bridge"),
        ("archive", "chron-archive", "Archive a queue in an object store", "package chronfs-relay", "crates/bridge"),
        ("export", "chron-export", "Export queues to Parquet", "package chronfs-export", "crates/export"),
    ] {
        let run = || {
            let mut run = Command::new(&program);
            run.args([command, "run", "--name", "x"]).env("PATH", dir.path().join("none")).output().unwrap()
        };
        assert_fails(&run(), &[summary, name, package, source]);
        std::os::unix::fs::symlink("/bin/echo", dir.path().join(name)).unwrap();
        assert_eq!(run().stdout, b"run --name x\n");
    }
}
