//! `chron-cli completions`: generated from the definitions in `main.rs`.

use std::fmt::Write as _;

use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::failure::{Done, Outcome};
use crate::output::Output;
use crate::{Cli, CompletionsArgs};

pub(crate) fn run(args: &CompletionsArgs) -> Outcome {
    let mut out = Output::stdout()?;
    clap_complete::generate(args.shell, &mut command_line(), "chron-cli", &mut out.buffer);
    let script = String::from_utf8_lossy(&out.buffer);
    match args.shell {
        Shell::Bash => out.buffer = mend_bash(&script).into_bytes(),
        Shell::Fish => out.buffer = mend_fish(&script).into_bytes(),
        _ => {}
    }
    out.flush()?;
    Ok(Done::Well)
}

/// The command line, in which `man` takes the names of subcommands.
fn command_line() -> Command {
    // The parser takes only names that live as long as the program.
    let commands: &'static Command = Box::leak(Box::new(Cli::command()));
    let names: Vec<&'static str> = commands.get_subcommands().map(Command::get_name).collect();
    Cli::command().mut_subcommand("man", |man| {
        man.mut_arg("subcommand", |name| name.value_parser(PossibleValuesParser::new(names)))
    })
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
    for command in command_line().get_subcommands() {
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
