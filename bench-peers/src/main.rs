//! chronfs beside its peers and beside the floor: the minimum cost on this machine.
//!
//! One program plays all parts: it starts itself a second time for whatever takes two processes (`pair.rs`). Every way
//! to send messages is a [`link`]; the same code drives all of them, in turns, so that all see the same machine.

mod append;
mod link;
mod mount;
mod pair;
mod plan;
mod plot;
mod report;
mod scale;
mod scratch;
// The floors are those of `chron-cli bench`.
#[path = "../../src/bin/chron-cli/bench/shared.rs"]
mod shared;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plan::Plan;
use report::Report;
use scratch::Scratch;

/// Errors end up as text for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
usage: chronfs-bench [--quick] [--scale] [--only TEST,...] [--links LINK,...] [--bytes N,...] [--dir DIR] [--out DIR]
                     [--cli PATH] [--max-gb N]
  --quick      a few minutes instead of twenty
  --scale      the tables of growing queues, readers and sources instead
  --only       some of append,stream,one-way,round-trip,wake,mount (or grow,readers,fan-in)
  --links      only these ways to send: word,copied,chronfs,aeron,... (the tests of two processes)
  --bytes      payloads of these lengths, in all tests but wake and mount
  --dir        where queues are created (default: the temporary directory); a real file system
  --out        where peers.md, peers.json and the plots go (default: docs)
  --cli        chron-cli, for the tests with a mount (default: target/release/chron-cli)
  --max-gb     how far the queue grows with --scale (default: 50, or what fits on the disk)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, job] = args.as_slice()
        && flag == pair::OTHER
    {
        return end(pair::play(job));
    }
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    end(Args::parse(&args).and_then(|args| run(&args)))
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chronfs-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Args {
    quick: bool,
    scale: bool,
    only: Option<Vec<String>>,
    links: Option<Vec<String>>,
    bytes: Option<Vec<usize>>,
    dir: PathBuf,
    out: PathBuf,
    cli: PathBuf,
    max_gb: u64,
}

impl Args {
    fn parse(args: &[String]) -> Result<Self> {
        let mut parsed = Self {
            quick: false,
            scale: false,
            only: None,
            links: None,
            bytes: None,
            dir: std::env::temp_dir(),
            out: PathBuf::from("docs"),
            cli: PathBuf::from("target/release/chron-cli"),
            max_gb: 50,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                "--quick" => parsed.quick = true,
                "--scale" => parsed.scale = true,
                "--only" => parsed.only = Some(value()?.split(',').map(str::to_owned).collect()),
                "--links" => parsed.links = Some(value()?.split(',').map(str::to_owned).collect()),
                "--bytes" => {
                    let bytes = value()?.split(',').map(|text| text.parse().ok().filter(|&bytes| bytes >= 8));
                    let bytes: Option<Vec<usize>> = bytes.collect();
                    parsed.bytes = Some(bytes.ok_or("--bytes: lengths of at least 8, with commas between them")?);
                }
                "--dir" => parsed.dir = value()?.into(),
                "--out" => parsed.out = value()?.into(),
                "--cli" => parsed.cli = value()?.into(),
                "--max-gb" => parsed.max_gb = value()?.parse()?,
                _ => return Err(format!("{arg}: no such option\n{USAGE}").into()),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, test: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == test))
    }
}

fn run(args: &Args) -> Result<()> {
    // Before the minutes that it takes to have something to write there.
    std::fs::create_dir_all(&args.out).map_err(|error| format!("--out {}: {error}", args.out.display()))?;
    let scratch = Scratch::new(&args.dir)?;
    let plan = Plan::new(args, &scratch);
    let mut report = Report::new(&scratch, &args.cli)?;
    if args.scale {
        for (name, test) in
            [("grow", scale::grow as scale::Part), ("readers", scale::readers), ("fan-in", scale::fan_in)]
        {
            if args.wants(name) {
                eprintln!("== {name}");
                report.attempt(name, |report| test(&plan, report));
            }
        }
        return finish(args, &report, "scale");
    }
    if args.wants("append") {
        append::run(&plan, &mut report);
    }
    for test in [pair::Test::Stream, pair::Test::OneWay, pair::Test::RoundTrip, pair::Test::Wake] {
        if args.wants(test.name()) {
            pair::run(&plan, test, &mut report);
        }
    }
    if args.wants("mount") {
        report.attempt("mount", |report| mount::run(&plan, report));
    }
    finish(args, &report, "peers")
}

fn finish(args: &Args, report: &Report, name: &str) -> Result<()> {
    let at = |ending: &str| args.out.join(format!("{name}{ending}"));
    let plots = plot::all(report, &args.out, name)?;
    std::fs::write(at(".json"), serde_json::to_string_pretty(report)?)?;
    std::fs::write(at(".md"), report.markdown(name, &plots))?;
    eprintln!("{}", display(&at(".md")));
    Ok(())
}

fn display(path: &Path) -> String {
    format!("wrote {}", path.display())
}
