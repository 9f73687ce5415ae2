//! The sources keep the shape that the architecture gives them: layers (of the
//! program), sizes, no `unwrap()` (of the other crates too).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The modules in layers: each may use those of the layers above its line.
/// Those of the first line may also use each other; of any other line, not.
const LAYERS: &[&[&str]] = &[
    &["error", "config", "proto", "metrics", "logging", "mutants", "version"],
    &["storage"],
    &["machine", "raftlog"],
    &["replica", "watch", "lease", "check"],
    &["transport"],
    &["node"],
    &["api"],
    &["run", "snapshot"],
    &["cli"],
];

const MAX_FILE_LINES: usize = 600;
const MAX_MAIN_LINES: usize = 80;
const MAX_FUNCTION_LINES: usize = 70;

/// A source file without its comments, literals and tests, all replaced by
/// blanks so that lines keep their numbers.
struct Source {
    /// Path below the source directory.
    path: String,
    code: Vec<char>,
    /// Lines outside of test modules, comments included.
    lines: usize,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Blanks out `code[from..to]`, leaving line ends.
fn blank(code: &mut [char], from: usize, to: usize) {
    let to = to.min(code.len());
    for c in &mut code[from.min(to)..to] {
        if *c != '\n' {
            *c = ' ';
        }
    }
}

/// The end of the string whose quote stands at `at`, in which `\` escapes.
fn string_end(code: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < code.len() && code[end] != '"' {
        end += if code[end] == '\\' { 2 } else { 1 };
    }
    end + 1
}

/// The end of a raw string if one begins at `at` with its `r`.
fn raw_string_end(code: &[char], at: usize) -> Option<usize> {
    let hashes = code.get(at + 1..)?.iter().take_while(|c| **c == '#').count();
    let in_word = at > 0 && is_word(code[at - 1]) && code[at - 1] != 'b';
    if code[at] != 'r' || in_word || code.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let mut end = at + 2 + hashes;
    while end < code.len() {
        let closes =
            code[end] == '"' && code[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
        end += 1;
        if closes {
            return Some(end + hashes);
        }
    }
    Some(end)
}

/// The end of a block comment, which may hold others.
fn block_comment_end(code: &[char], at: usize) -> usize {
    let (mut depth, mut end) = (0_usize, at);
    while end + 1 < code.len() {
        match (code[end], code[end + 1]) {
            ('/', '*') => (depth, end) = (depth + 1, end + 2),
            ('*', '/') => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            return end;
        }
    }
    code.len()
}

/// The end of the comment or literal that begins at `at`, if one does.
fn skipped_until(code: &[char], at: usize) -> Option<usize> {
    match (code[at], code.get(at + 1)) {
        ('/', Some('/')) => {
            Some(code[at..].iter().position(|c| *c == '\n').map_or(code.len(), |n| at + n))
        }
        ('/', Some('*')) => Some(block_comment_end(code, at)),
        ('"', _) => Some(string_end(code, at)),
        ('\'', Some('\\')) => code[at + 3..].iter().position(|c| *c == '\'').map(|n| at + n + 4),
        // Otherwise it is a lifetime.
        ('\'', Some(_)) if code.get(at + 2) == Some(&'\'') => Some(at + 3),
        ('r', _) => raw_string_end(code, at),
        _ => None,
    }
}

/// The source without comments and literals.
fn bare(text: &str) -> Vec<char> {
    let mut code: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < code.len() {
        if let Some(end) = skipped_until(&code, at) {
            blank(&mut code, at, end);
            at = end;
        } else {
            at += 1;
        }
    }
    code
}

fn find(code: &[char], needle: &str, from: usize) -> Option<usize> {
    let needle: Vec<char> = needle.chars().collect();
    let rest = code.get(from..)?;
    rest.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
}

/// The end of the item at `from`: after its `;` or its closing brace.
fn item_end(code: &[char], from: usize) -> usize {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (at, c) in code.iter().enumerate().skip(from) {
        match c {
            '{' => braces += 1,
            '}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 && others == 0 {
                    return at + 1;
                }
            }
            '(' | '[' => others += 1,
            ')' | ']' => others = others.saturating_sub(1),
            ';' if braces == 0 && others == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

fn line_of(code: &[char], at: usize) -> usize {
    code[..at].iter().filter(|c| **c == '\n').count() + 1
}

const TEST_ITEM: &str = "#[cfg(test)]";

/// Blanks out every item for tests alone. Returns the lines these took and the
/// names of the test modules that are files of their own.
fn cut_tests(code: &mut [char]) -> (usize, Vec<String>) {
    let (mut lines, mut modules) = (0, Vec::new());
    let mut from = 0;
    while let Some(at) = find(code, TEST_ITEM, from) {
        let start = at + TEST_ITEM.len();
        let end = item_end(code, start);
        let item: String = code[start..end].iter().collect();
        let item = item.trim().trim_end_matches(';');
        // Whatever its visibility.
        if let (Some((_, name)), ';') = (item.rsplit_once("mod "), code[end - 1]) {
            modules.push(name.trim().to_owned());
        }
        lines += line_of(code, end) - line_of(code, at) + 1;
        blank(code, at, end);
        from = end;
    }
    (lines, modules)
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("list a source directory") {
        let path = entry.expect("an entry of a source directory").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Where the submodules of the file at `path` lie.
fn submodule_directory(path: &Path) -> PathBuf {
    match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => path.with_file_name(""),
        _ => path.with_extension(""),
    }
}

/// The program's sources, and with them those of the crates that prove it.
const PROGRAM: &str = "src";
const ALL: [&str; 4] = [PROGRAM, "bench/src", "fuzz/src", "proof/src"];

/// All below a source directory but the files that are tests.
fn sources(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut paths = Vec::new();
    rust_files(&root, &mut paths);
    paths.sort();
    let (mut sources, mut tests) = (Vec::new(), Vec::new());
    for path in paths {
        let text = fs::read_to_string(&path).expect("read a source file");
        let mut code = bare(&text);
        let (test_lines, modules) = cut_tests(&mut code);
        let directory = submodule_directory(&path);
        for module in modules {
            tests.push(directory.join(format!("{module}.rs")));
            tests.push(directory.join(module));
        }
        let lines = text.lines().count() - test_lines;
        sources.push((path, code, lines));
    }
    sources.retain(|(path, ..)| !tests.iter().any(|test| path.starts_with(test)));
    assert!(sources.len() > 10, "the sources were not found below {}", root.display());
    let relative =
        |path: &Path| path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
    let source =
        |(path, code, lines): (PathBuf, _, _)| Source { path: relative(&path), code, lines };
    sources.into_iter().map(source).collect()
}

/// The first names of the paths that begin with `crate::`, with their lines.
fn uses_of_crate(code: &[char]) -> Vec<(usize, String)> {
    const PREFIX: &str = "crate::";
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = find(code, PREFIX, from) {
        from = at + PREFIX.len();
        if at > 0 && (is_word(code[at - 1]) || code[at - 1] == ':') {
            continue;
        }
        let word_at = |start: usize| -> String {
            code[start..].iter().take_while(|c| is_word(**c)).collect()
        };
        if code.get(from) != Some(&'{') {
            found.push((line_of(code, at), word_at(from)));
            continue;
        }
        let (mut depth, mut expected) = (0_usize, false);
        for (place, c) in code.iter().enumerate().skip(from) {
            match c {
                '{' => (depth, expected) = (depth + 1, depth == 0),
                '}' if depth == 1 => break,
                '}' => depth -= 1,
                ',' => expected = depth == 1,
                c if is_word(*c) && expected => {
                    found.push((line_of(code, place), word_at(place)));
                    expected = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Why `user` must not use `used`, if so.
fn layer_violation(user: &str, used: &str) -> Option<String> {
    if user == used {
        return None;
    }
    let (Some(above), Some(below)) = (layer(user), layer(used)) else {
        return Some(format!("{user} uses {used}, and one of them has no layer"));
    };
    let allowed = below < above || (above == 0 && below == 0);
    (!allowed).then(|| format!("{user} must not use {used}"))
}

/// The module at the root of the crate that the file belongs to.
fn root_module(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// How many `super::` lead from the file to the root of the crate.
fn depth(path: &str) -> usize {
    path.trim_end_matches("/mod.rs").split('/').count()
}

#[test]
fn modules_use_only_what_stands_in_layers_above() {
    let mut violations = Vec::new();
    for source in sources(PROGRAM) {
        let user = root_module(&source.path);
        if matches!(user, "lib" | "main") {
            continue;
        }
        if layer(user).is_none() {
            violations.push(format!("src/{}: {user} has no layer", source.path));
        }
        for (line, used) in uses_of_crate(&source.code) {
            if let Some(why) = layer_violation(user, &used) {
                violations.push(format!("src/{}:{line}: {why}", source.path));
            }
        }
        let to_the_root = "super::".repeat(depth(&source.path));
        if let Some(at) = find(&source.code, &to_the_root, 0) {
            let line = line_of(&source.code, at);
            violations.push(format!("src/{}:{line}: write crate:: for it", source.path));
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn files_are_short() {
    let mut violations = Vec::new();
    for directory in ALL {
        for Source { path, lines, .. } in sources(directory) {
            let limit = if path == "main.rs" { MAX_MAIN_LINES } else { MAX_FILE_LINES };
            if lines > limit {
                violations.push(format!("{directory}/{path}: {lines} lines, at most {limit}"));
            }
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Name, first line and number of lines of each function with a body.
fn functions(code: &[char]) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = find(code, "fn ", from) {
        from = at + 3;
        let name: String = code[from..].iter().take_while(|c| is_word(**c)).collect();
        if name.is_empty() || (at > 0 && is_word(code[at - 1])) {
            continue;
        }
        let end = item_end(code, from);
        let (first, last) = (line_of(code, at), line_of(code, end));
        if code[end - 1] == '}' {
            found.push((name, first, last - first + 1));
        }
    }
    found
}

#[test]
fn functions_are_short() {
    let mut violations = Vec::new();
    let mut seen = 0;
    for directory in ALL {
        for source in sources(directory) {
            for (name, line, lines) in functions(&source.code) {
                seen += 1;
                if lines > MAX_FUNCTION_LINES {
                    let place = format!("{directory}/{}:{line}", source.path);
                    violations.push(format!("{place}: {name} has {lines} lines"));
                }
            }
        }
    }
    assert!(seen > 10, "only {seen} functions were found");
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn nothing_is_unwrapped_outside_of_tests() {
    let mut violations = Vec::new();
    for directory in ALL {
        for Source { path, code, .. } in sources(directory) {
            let mut from = 0;
            while let Some(at) = find(&code, ".unwrap()", from) {
                violations.push(format!("{directory}/{path}:{}", line_of(&code, at)));
                from = at + 1;
            }
        }
    }
    assert!(violations.is_empty(), "unwrap() in\n{}", violations.join("\n"));
}

/// A source that holds one of everything the checks above look for, and the
/// same again where they must not look.
const SAMPLE: &str = r##"
use crate::{
    error::{Fatal, cli},
    storage::{self, Engine},
}; // use crate::api;
fn long<'a>(text: &'a str, quote: char) -> [u8; 2] {
    let _ = ("{ fn no() {", r#"crate::api " {"#, '{', '\'', b'}', /* } */ text);
    crate::machine::apply(quote).unwrap();
    [1, 2]
}
trait Bodyless { fn nothing(&self) -> [u8; 2]; }
#[cfg(test)]
mod tests {
    fn test() { crate::node::start().unwrap(); }
}
#[cfg(test)]
mod conformance;
fn after() {}
"##;

#[test]
fn scanner_sees_code_and_not_comments_literals_or_tests() {
    let mut code = bare(SAMPLE);
    let (lines, modules) = cut_tests(&mut code);
    assert_eq!(lines, 6);
    assert_eq!(modules, ["conformance"]);
    let uses: Vec<_> = uses_of_crate(&code);
    let expected = [(3, "error"), (4, "storage"), (8, "machine")];
    assert_eq!(uses, expected.map(|(line, name)| (line, name.to_owned())));
    let expected = [("long", 6, 5), ("after", 18, 1)];
    assert_eq!(functions(&code), expected.map(|(name, line, n)| (name.to_owned(), line, n)));
    assert_eq!(find(&code, ".unwrap()", 0).map(|at| line_of(&code, at)), Some(8));
    assert_eq!(code.len(), SAMPLE.chars().count());
}

#[test]
fn layers_forbid_what_they_should() {
    for (user, used) in [
        ("machine", "raftlog"),
        ("raftlog", "machine"),
        ("storage", "raftlog"),
        ("replica", "transport"),
        ("transport", "node"),
        ("node", "api"),
        ("error", "storage"),
        ("replica", "lease"),
        ("node", "helper"),
    ] {
        assert!(layer_violation(user, used).is_some(), "{user} uses {used}");
    }
    for (user, used) in
        [("machine", "storage"), ("api", "node"), ("node", "node"), ("config", "error")]
    {
        assert_eq!(layer_violation(user, used), None);
    }
    assert_eq!((depth("error.rs"), depth("node/mod.rs"), depth("node/handle.rs")), (1, 1, 2));
    assert_eq!((root_module("error.rs"), root_module("api/http/kv.rs")), ("error", "api"));
}
