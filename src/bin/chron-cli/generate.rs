//! `chron-cli completions` and `chron-cli man`: generated from the definitions in `main.rs`.

use clap::CommandFactory as _;

use crate::failure::{Done, Failure, Outcome};
use crate::output::{Output, print};
use crate::{Cli, CompletionsArgs, ManArgs};

pub(crate) fn completions(args: &CompletionsArgs) -> Outcome {
    let mut out = Output::stdout()?;
    clap_complete::generate(args.shell, &mut Cli::command(), "chron-cli", &mut out.buffer);
    if args.shell == clap_complete::Shell::Bash {
        // For a command with a hyphen, the generator stores subcommands under one spelling and looks them up under
        // another: nothing after a subcommand would be completed.
        let script = String::from_utf8_lossy(&out.buffer).replace("chron__subcmd__cli", "chron__cli");
        out.buffer = script.into_bytes();
    }
    out.flush()?;
    Ok(Done::Well)
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
