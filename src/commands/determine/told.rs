//! What `skyfill determine` says of its work: lines for people on stderr, one JSON object for programs.

use std::io::{self, Write};
use std::path::Path;

use indicatif::HumanCount;
use serde_json::{Map, Value, json};

use crate::commands::determine::Outcome;
use crate::commands::determine::flags::Flags;
use crate::commands::determine::intake::Named;
use crate::commands::error::CommandError;
use crate::store::error::StoreError;

/// Writes the summary for people. A closed stderr changes nothing.
///
/// # Errors
/// Never; the type is that of its like.
pub fn text(outcome: &Outcome, flags: &Flags, told: &mut dyn Write) -> Result<(), CommandError> {
    let _unseen = told.write_all(lines(outcome, flags).as_bytes()).and_then(|()| told.flush());
    Ok(())
}

fn lines(outcome: &Outcome, flags: &Flags) -> String {
    let figures = &outcome.figures;
    let count = |n: u64| HumanCount(n).to_string();
    let bad: u64 = figures.bad.values().sum();
    let mut text = format!(
        "files     {} read, {} passed over\nrows      {}; {} outside {} to {}, {} of other kinds\nsubjects  {}\nauthors   {}\n",
        count(outcome.files),
        count(outcome.passed_over),
        count(figures.rows),
        count(figures.outside_dates),
        flags.start_date,
        flags.end_date,
        count(figures.other_kinds),
        count(figures.subjects),
        count(outcome.authors)
    );
    let ledger = match &outcome.ledger {
        Some(path) => format!("{} done in {}", count(outcome.already_done), path.display()),
        None => "0 done (there is no ledger in the data directory)".to_owned(),
    };
    text += &format!("left out  {ledger}, {} excluded", count(outcome.excluded));
    if let Some(path) = &flags.append_to {
        text += &format!(", {} in {} before", count(outcome.already_listed), path.display());
    }
    text += &format!("\naccounts  {}\n", count(outcome.accounts));
    if outcome.exclude_malformed > 0 {
        let lines = count(outcome.exclude_malformed);
        text += &format!("exclude   {lines} lines are no DID and exclude nobody\n");
    }
    let causes: Vec<String> =
        figures.bad.iter().map(|(cause, n)| format!("{} {}", cause.as_str(), count(*n))).collect();
    let causes = if bad == 0 { String::new() } else { format!(": {}", causes.join(", ")) };
    text += &format!("bad       {}{causes}\n", count(bad));
    for named in &figures.named {
        let Named { file, row, cause, detail, .. } = named;
        let record = named.record.map_or(String::new(), |record| format!(" record {record}"));
        text += &format!("bad       {file} row {row}{record}: {}: {detail}\n", cause.as_str());
    }
    text
}

/// Writes the summary as one JSON object.
///
/// # Errors
/// [`CommandError`] of `out`, unless whoever reads it has gone.
pub fn json(outcome: &Outcome, flags: &Flags, out: &mut dyn Write) -> Result<(), CommandError> {
    let figures = &outcome.figures;
    let named = |named: &Named| {
        let Named { file, row, record, cause, detail } = named;
        json!({"file": file, "row": row, "record": record, "cause": cause.as_str(), "detail": detail})
    };
    let bad: Map<String, Value> =
        figures.bad.iter().map(|(cause, n)| (cause.as_str().to_owned(), json!(n))).collect();
    let kinds: Vec<&str> = flags.kinds.iter().map(|kind| kind.label()).collect();
    let value = json!({
        "kinds": kinds,
        "start_date": flags.start_date,
        "end_date": flags.end_date,
        "files": outcome.files,
        "passed_over": outcome.passed_over,
        "rows": figures.rows,
        "other_kinds": figures.other_kinds,
        "outside_dates": figures.outside_dates,
        "subjects": figures.subjects,
        "authors": outcome.authors,
        "already_done": outcome.already_done,
        "excluded": outcome.excluded,
        "already_listed": outcome.already_listed,
        "accounts": outcome.accounts,
        "spills": outcome.spills,
        "exclude_malformed": outcome.exclude_malformed,
        "bad": bad,
        "named": figures.named.iter().map(named).collect::<Vec<_>>(),
    });
    match writeln!(out, "{value}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.map_err(|error| StoreError::io(Path::new("stdout"), error))?),
    }
}
