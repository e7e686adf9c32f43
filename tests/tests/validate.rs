//! `--mode validate` on broken configurations: the same exit code as Envoy, and a message that
//! names what is wrong.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};

use serde_json::Value;
use tests::proxy::Kind;

fn validate(kind: Kind, config: &Value) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bootstrap.json");
    std::fs::write(&path, serde_json::to_vec_pretty(config).unwrap()).unwrap();
    Command::new(kind.binary())
        .args(["--mode", "validate", "-l", "error", "-c"])
        .arg(&path)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", kind.binary().display()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Sets the value at a JSON pointer whose last part may be new.
fn patch(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        other => other[key] = value,
    }
}

#[test]
fn broken_configurations_are_refused() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/invalid.yaml");
    let spec: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut faults = Vec::new();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let output = validate(kind, &spec["base"]);
        if output.status.code() != Some(0) {
            faults.push(format!("{}: base: {}", kind.name(), text(&output)));
        }
    }
    for case in spec["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut config = spec["base"].clone();
        patch(&mut config, case["path"].as_str().unwrap(), case["value"].clone());
        let theirs = validate(Kind::Envoy, &config);
        let mine = validate(Kind::Outrigger, &config);
        // `stricter` is the reason why Outrigger refuses what Envoy takes.
        let want = if case["stricter"].is_string() { Some(1) } else { theirs.status.code() };
        if case["stricter"].is_string() && theirs.status.code() != Some(0) {
            faults.push(format!("{name}: declared as stricter, but Envoy refuses it too"));
        }
        if want != mine.status.code() {
            faults.push(format!(
                "{name}: Envoy {:?}, Outrigger {:?}: {}",
                theirs.status.code(),
                mine.status.code(),
                text(&mine)
            ));
            continue;
        }
        let said = text(&mine);
        for word in case["says"].as_array().unwrap() {
            if !said.contains(word.as_str().unwrap()) {
                faults.push(format!("{name}: no word of {word} in: {said}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
