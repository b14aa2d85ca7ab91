// Weaves every mutant of a file into it, so that one build has all of them and a run picks one by its number:
//
//   fn is_empty(&self) -> bool {           fn is_empty(&self) -> bool {
//       self.len() == 0                        match crate::mutant::now(4) {
//   }                                             17 => { true },
//                                                 18 => { self.len() != 0 },
//                                                 _ => { self.len() == 0 } } }
//
// What a mutant is and what it is called is cargo-mutants' (`cargo mutants --list --json`).

/// Offset in `text` of a line and a column, both from 1.
const placed = (text) => {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  return ({ line, column }) => starts[line - 1] + column - 1;
};

/// Offset of the brace that opens a function's body: the first outside of parentheses, brackets and comments.
const opening = (text, start) => {
  let depth = 0;
  for (let at = start; at < text.length; at += 1) {
    if (text.startsWith("//", at)) at = text.indexOf("\n", at);
    else if ("([".includes(text[at])) depth += 1;
    else if (")]".includes(text[at])) depth -= 1;
    else if (text[at] === "{" && depth === 0) return at;
  }
  throw new Error("a function without a body");
};

/// A file's text with one mutant in it.
export const mutated = (text, mutant) => {
  const at = placed(text);
  const { start, end } = mutant.span;
  return text.slice(0, at(start)) + mutant.replacement + text.slice(at(end));
};

/// The text with those of `mutants` (each with its `number`) that can be woven, as `{ text, arms, functions, left }`:
/// `arms` says which lines of the text are which mutants' ({ first, last, numbers }), those of the whole function after
/// those of its arms; `functions` which numbers stand in which function, from `firstFunction` on; `left` what cannot
/// be woven: no constants, no `const fn`, and none that return an `impl`, whose every arm would be a type of its own.
export const woven = (text, mutants, firstFunction) => {
  const at = placed(text);
  const left = mutants.filter((mutant) => mutant.function === null);
  const inFunctions = mutants
    .filter((mutant) => mutant.function !== null)
    .map((mutant) => ({
      ...mutant,
      outer: { start: at(mutant.function.span.start), end: at(mutant.function.span.end) },
      from: at(mutant.span.start),
      to: at(mutant.span.end),
    }))
    .sort((one, other) => one.outer.start - other.outer.start || other.outer.end - one.outer.end);
  // A function inside another's body is a part of that body.
  const groups = [];
  for (const mutant of inFunctions) {
    const last = groups.at(-1);
    if (last !== undefined && mutant.outer.end <= last.end) last.mutants.push(mutant);
    else groups.push({ ...mutant.outer, mutants: [mutant] });
  }
  let out = "";
  let line = 1;
  let done = 0;
  const add = (more) => {
    out += more;
    line += more.split("\n").length - 1;
  };
  const arms = [];
  const functions = new Map();
  for (const { start, end, mutants: ours } of groups) {
    const open = opening(text, start);
    const signature = text.slice(start, open);
    if (/\bconst\s+(unsafe\s+)?fn\b|->.*\bimpl\b/s.test(signature)) {
      left.push(...ours);
      continue;
    }
    const body = text.slice(open, end);
    const number = firstFunction + functions.size;
    add(text.slice(done, open));
    const first = line;
    add(`{ match crate::mutant::now(${number}) {`);
    for (const { number: mutant, from, to, replacement } of ours) {
      add("\n");
      const begun = line;
      add(`${mutant} => ${body.slice(0, from - open)}${replacement}${body.slice(to - open)},`);
      arms.push({ first: begun, last: line, numbers: [mutant] });
    }
    add(`\n_ => ${body} } }`);
    arms.push({ first, last: line, numbers: ours.map((mutant) => mutant.number) });
    functions.set(number, ours.map((mutant) => mutant.number));
    done = end;
  }
  add(text.slice(done));
  return { text: out, arms, functions, left };
};

/// The module that tells a woven function which mutant it is to be: MUTANT's, or none. To a file that MUTANT_SEEN names it
/// appends the number of each function that is entered.
export const module = (functions) => `//! Which mutant is on.
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
const UNREAD: u32 = u32::MAX;
static NOW: AtomicU32 = AtomicU32::new(UNREAD);
static SEEN: [AtomicBool; ${functions}] = [const { AtomicBool::new(false) }; ${functions}];
pub fn now(function: usize) -> u32 {
    if !SEEN[function].load(Relaxed) && !SEEN[function].swap(true, Relaxed) {
        seen(function);
    }
    match NOW.load(Relaxed) {
        UNREAD => read(),
        now => now,
    }
}
#[cold]
fn seen(function: usize) {
    if let Some(path) = std::env::var_os("MUTANT_SEEN") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{function}\\n").as_bytes()).unwrap();
    }
}
#[cold]
fn read() -> u32 {
    let now = std::env::var("MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    NOW.store(now, Relaxed);
    now
}
`;
