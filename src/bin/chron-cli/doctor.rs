//! `chron-cli doctor`: prints what [`chronfs::doctor`] finds, for people or as JSON.

use std::path::Path;

use chronfs::doctor::{self, Finding, Options, Report, Severity};
use chronfs::report::{counted, to_json};

use crate::DoctorArgs;
use crate::failure::{Done, Failure, Outcome, note, one_line, refuse_mount, root_remedy};
use crate::output::print;
use crate::progress;

pub(crate) fn run(args: &DoctorArgs, color: bool) -> Outcome {
    refuse_mount(&args.root).map_err(|refused| Failure::Unchecked(refused.text().to_owned()))?;
    let options = Options { deep: args.deep, fix: args.fix };
    let mut bar = None;
    let report = doctor::examine(&args.root, options, &mut |progress| {
        let bar = bar.get_or_insert_with(|| progress::bytes(progress.total_bytes, "verifying"));
        bar.set_position(progress.done_bytes);
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = report
        .map_err(|e| Failure::Unchecked(format!("{}: cannot list: {e}{}", args.root.display(), root_remedy(&e))))?;
    if args.json {
        print(&format!("{}\n", to_json(&report)))?;
    } else {
        print(&for_people(&report, color))?;
    }
    for problem in &report.unchecked {
        note(problem);
    }
    Ok(if report.has_problems() {
        Done::Problems
    } else if report.unchecked.is_empty() {
        Done::Well
    } else {
        Done::Unchecked
    })
}

/// A finding is two lines: what is wrong and where, and what to do about it.
fn for_people(report: &Report, color: bool) -> String {
    let mut text = String::new();
    let paint = |code: &str, word: &str| if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let mut put = |word: String, finding: &Finding, remedy: Option<&str>| {
        let place = one_line(&shown(&report.root, &finding.path));
        text.push_str(&format!("{word}  {place}: {}: {}\n", finding.kind, one_line(&finding.detail)));
        if let Some(remedy) = remedy {
            text.push_str(&format!("         -> {}\n", one_line(remedy)));
        }
    };
    for finding in &report.fixed {
        put(paint("32", "fixed  "), finding, None);
    }
    for finding in &report.findings {
        let (code, word) = match finding.severity {
            Severity::Error => ("31", "error  "),
            Severity::Warning => ("33", "warning"),
            Severity::Info => ("36", "info   "),
        };
        put(paint(code, word), finding, Some(&finding.remedy));
    }
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count() as u64;
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let verdict = if report.has_problems() {
        format!("{}, {}", counted(errors, "error"), counted(warnings, "warning"))
    } else if !report.unchecked.is_empty() {
        "not everything could be checked".to_owned()
    } else if report.checked == 0 {
        "no queues here".to_owned()
    } else {
        "all well".to_owned()
    };
    text.push_str(&format!("{} checked: {verdict}\n", counted(report.checked, "queue")));
    text
}

/// The path as the user can use it; it starts with the root as they gave it.
fn shown(root: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(root).unwrap_or(path);
    if inside.as_os_str().is_empty() { root.display().to_string() } else { path.display().to_string() }
}
