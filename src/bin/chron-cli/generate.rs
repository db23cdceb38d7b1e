//! `chron-cli completions` and `chron-cli man`: generated from the definitions in `main.rs`.

use std::fmt::Write as _;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::failure::{Done, Failure, Outcome};
use crate::output::{Output, print};
use crate::{Cli, CompletionsArgs, ManArgs};

pub(crate) fn completions(args: &CompletionsArgs) -> Outcome {
    let mut out = Output::stdout()?;
    clap_complete::generate(args.shell, &mut Cli::command(), "chron-cli", &mut out.buffer);
    let script = String::from_utf8_lossy(&out.buffer);
    match args.shell {
        Shell::Bash => out.buffer = mend_bash(&script).into_bytes(),
        Shell::Fish => out.buffer = mend_fish(&script).into_bytes(),
        _ => {}
    }
    out.flush()?;
    Ok(Done::Well)
}

/// For a command with a hyphen, the generator stores subcommands under one spelling and looks them up under another:
/// nothing after a subcommand would be completed. And where no option has been begun it offers options only, instead of
/// falling back to file names.
fn mend_bash(script: &str) -> String {
    script
        .replace("chron__subcmd__cli", "chron__cli")
        .replacen("    opts=\"\"\n", "    opts=\"\"\n    local hidden=\"-*\"\n    [[ -z ${cur} ]] || hidden=\"\"\n", 1)
        .replace("compgen -W \"${opts}\" --", "compgen -W \"${opts}\" -X \"${hidden}\" --")
}

/// The generator leaves out the values of arguments that are not options, and takes the first word after `help` for a
/// subcommand that was seen: `help` itself.
fn mend_fish(script: &str) -> String {
    let mut script = script.replace(" man help\" -f -a", " man\" -f -a");
    for command in Cli::command().get_subcommands() {
        let values = command.get_positionals().flat_map(clap::Arg::get_possible_values);
        let names: Vec<_> = values.map(|value| value.get_name().to_owned()).collect();
        if !names.is_empty() {
            let (command, names) = (command.get_name(), names.join(" "));
            let _ = writeln!(
                script,
                "complete -c chron-cli -n \"__fish_chron_cli_using_subcommand {command}\" -f -a \"{names}\""
            );
        }
    }
    script
}

pub(crate) fn man(args: &ManArgs) -> Outcome {
    let mut root = Cli::command();
    // Only a built definition has the options that every subcommand inherits, and its full name.
    root.build();
    let command = match &args.subcommand {
        None => root,
        Some(name) => root
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::Usage(format!("{name}: no such subcommand; 'chron-cli --help' lists them")))?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .source(concat!("chron-cli ", env!("CARGO_PKG_VERSION")))
        .render(&mut page)
        .map_err(|e| Failure::new(format!("cannot render the manual page: {e}")))?;
    // Ragged lines: justified ones would pull the examples apart. The generator calls what follows the options EXTRA.
    let page = String::from_utf8_lossy(&page).replacen("\n.SH NAME", "\n.ad l\n.nh\n.SH NAME", 1);
    print(&page.replace("\n.SH EXTRA", "\n.SH NOTES"))?;
    Ok(Done::Well)
}
