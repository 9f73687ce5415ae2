//! Commands of the program that end by themselves.

use std::process::{Command, Output};

/// Runs a command of the program to its end.
pub fn metastore(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metastore"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("METASTORE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).output().expect("the program starts")
}

/// What a command that must succeed prints.
///
/// # Panics
/// When it does not.
pub fn report(arguments: &[&str]) -> String {
    let output = metastore(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The one line of a command that must fail.
///
/// # Panics
/// When it does not, or does not say what to do.
pub fn refusal(arguments: &[&str]) -> String {
    let output = metastore(arguments);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(text.starts_with("metastore: ") && text.matches('\n').count() == 1, "{text}");
    assert!(text.contains("; "), "it does not say what to do: {text}");
    text
}
