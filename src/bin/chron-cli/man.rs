//! `chron-cli man`: manual pages from the definitions in `main.rs`. The text that a command's help ends with is divided
//! among the sections that a manual page has for it.

use std::fs;
use std::io::ErrorKind;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::failure::{Done, Failure, Outcome};
use crate::output::print;
use crate::{Cli, ManArgs};

const EXIT_STATUS: &str = "0 done, 1 failed or problems found, 2 wrong usage.";

const FILES: [(&str, &str); 5] = [
    ("QUEUE/control.meta", "The queue's settings. A directory that has it is a queue."),
    ("QUEUE/000000000.q, QUEUE/000000001.q …", "Its segments, which hold the messages."),
    ("QUEUE/readers/NAME.meta", "The position of a reader."),
    ("QUEUE/writer.lock", "Locked by the process that appends."),
    ("QUEUE/READY, QUEUE/LEASE", "Whether the queue may be used, and which process says that it is alive."),
];

pub(crate) fn run(args: &ManArgs) -> Outcome {
    let mut root = Cli::command();
    // Only a built definition has the options that every subcommand inherits, and its full name.
    root.build();
    if let Some(dir) = &args.all {
        let subcommands = root.get_subcommands().filter(|command| command.get_name() != "help");
        for command in std::iter::once(&root).chain(subcommands) {
            let path = dir.join(Man::new(command.clone()).get_filename());
            fs::write(&path, page(command)?).map_err(|e| {
                let is_missing = e.kind() == ErrorKind::NotFound;
                let remedy = if is_missing { format!("; first: mkdir -p {}", dir.display()) } else { String::new() };
                Failure::new(format!("{}{remedy}", Failure::io(&path, "write")(e).text()))
            })?;
        }
        return Ok(Done::Well);
    }
    let command = match &args.subcommand {
        None => &root,
        Some(name) => root
            .find_subcommand(name)
            .ok_or_else(|| Failure::Usage(format!("{name}: no such subcommand; 'chron-cli --help' lists them")))?,
    };
    print(&page(command)?)?;
    Ok(Done::Well)
}

fn page(command: &Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    render(command, &mut page).map_err(|e| Failure::new(format!("cannot render the manual page: {e}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn render(command: &Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    let notes = Notes::of(command);
    let man = Man::new(command.clone())
        .source(concat!("chronfs ", env!("CARGO_PKG_VERSION")))
        .manual("Message queues as files");
    man.render_title(page)?;
    // Ragged lines: justified ones would pull the examples apart.
    Roff::new().control("ad", ["l"]).control("nh", []).to_writer(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    notes.description(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    notes.sections(command, page)
}

/// The parts of the text at the end of a command's help.
#[derive(Default)]
struct Notes {
    /// Paragraphs.
    text: Vec<String>,
    /// Lines, as they are.
    examples: Vec<String>,
    /// Number and meaning, divided by commas.
    exit_status: Option<String>,
    /// `NAME: meaning`.
    environment: Vec<String>,
}

impl Notes {
    fn of(command: &Command) -> Self {
        let mut notes = Self::default();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for paragraph in help.split("\n\n") {
            let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
            if matches!(first, "Example:" | "Examples:") {
                notes.examples = rest.lines().map(|line| line.trim_start().to_owned()).collect();
            } else if let Some(example) = paragraph.strip_prefix("Example: ") {
                notes.examples = vec![example.to_owned()];
            } else if let Some(codes) = paragraph.strip_prefix("Exit codes: ") {
                notes.exit_status = Some(codes.to_owned());
            } else if paragraph.starts_with("CHRONFS_") {
                notes.environment.push(paragraph.to_owned());
            } else if !paragraph.is_empty() {
                notes.text.push(paragraph.to_owned());
            }
        }
        notes
    }

    fn description(&self, page: &mut Vec<u8>) -> std::io::Result<()> {
        let mut roff = Roff::new();
        for paragraph in &self.text {
            roff.control("PP", []);
            for line in paragraph.lines() {
                // Tables of the help keep their lines.
                match line.strip_prefix("  ") {
                    Some(row) => roff.control("br", []).text([roman(row)]),
                    None => roff.text([roman(line)]),
                };
            }
        }
        roff.to_writer(page)
    }

    fn sections(&self, command: &Command, page: &mut Vec<u8>) -> std::io::Result<()> {
        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        let codes = self.exit_status.as_deref().unwrap_or(EXIT_STATUS);
        for code in codes.trim_end_matches('.').split(", ") {
            let (number, meaning) = code.split_once(' ').unwrap_or((code, ""));
            roff.control("TP", []).text([bold(number)]).text([roman(meaning)]);
        }
        let names: Vec<_> = command.get_arguments().map(|argument| argument.get_id().as_str()).collect();
        let is_root = command.get_name() == "chron-cli";
        if is_root || ["queue", "queues", "root"].iter().any(|name| names.contains(name)) {
            roff.control("SH", ["ENVIRONMENT"]);
            for variable in &self.environment {
                let (name, meaning) = variable.split_once(": ").unwrap_or((variable, ""));
                roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
            }
            if self.environment.is_empty() {
                let name = "CHRONFS_ROOT";
                roff.control("TP", []).text([bold(name)]);
                roff.text([roman("The bus directory where none is named; see "), bold("chron-cli"), roman("(1).")]);
            }
            roff.control("SH", ["FILES"]);
            for (path, what) in FILES {
                roff.control("TP", []).text([italic(path)]).text([roman(what)]);
            }
        }
        if !self.examples.is_empty() {
            roff.control("SH", ["EXAMPLES"]).control("nf", []);
            for line in &self.examples {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
        }
        roff.control("SH", ["SEE ALSO"]);
        let others = [("chron-cli", "(1), "), ("chronfs", "(5), "), ("mount.chronfs", "(8)")];
        let others = others.iter().filter(|(name, _)| *name != command.get_name());
        roff.text(others.flat_map(|(name, section)| [bold(*name), roman(*section)]).collect::<Vec<_>>());
        roff.to_writer(page)
    }
}
