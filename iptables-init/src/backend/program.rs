//! Programs that know the kernel's packet filters: run with a script on their standard input, and asked what there is.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// For one program: twice as long as iptables waits for its lock.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);

/// Why a program has not done what it was asked, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot run {program}: {source}")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program}: {said}{hint}")]
    Failed {
        program: String,
        /// Its own words, and the line of the script that they are about.
        said: String,
        /// What may help.
        hint: String,
    },
}

/// Where a program is, as the shell would find it; where PATH is not set, in the usual places.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What a program prints.
///
/// # Errors
/// When it fails.
pub fn ask(program: &Path, arguments: &[&str]) -> Result<String, ProgramError> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = done(program, child.and_then(|child| finish(child, "", PATIENCE)), "")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program on a script. It holds `lock` until it ends, even if we end before.
///
/// # Errors
/// When it fails.
pub fn run(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
    script: &str,
    lock: OwnedFd,
) -> Result<(), ProgramError> {
    let child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::from(lock))
        .stderr(Stdio::piped())
        .spawn();
    done(program, child.and_then(|child| finish(child, script, PATIENCE)), script).map(|_| ())
}

/// Gives a program its script and waits for its end; one that does not end is killed.
fn finish(mut child: Child, script: &str, patience: Duration) -> io::Result<Output> {
    let began = Instant::now();
    let script = script.to_owned();
    let stdin = child.stdin.take();
    // Nobody waits for these: what a killed program has started may hold the other ends for ever.
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(script.as_bytes())));
    let stdout = read(child.stdout.take());
    let stderr = read(child.stderr.take());
    let left = || patience.saturating_sub(began.elapsed());
    let out = (stdout.recv_timeout(left()), stderr.recv_timeout(left()));
    if let (Ok(stdout), Ok(stderr)) = out {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Output { status, stdout: stdout?, stderr: stderr? });
            }
            if left().is_zero() {
                break;
            }
            thread::sleep(PAUSE);
        }
    }
    child.kill()?;
    child.wait()?;
    let text = format!("it did not end within {} s", patience.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// All that comes out of a pipe, once it has ended.
fn read(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let done = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut text));
        // Whoever has given up does not listen.
        let _ = tell.send(done.map(|_| text));
    });
    told
}

fn done(program: &Path, output: io::Result<Output>, script: &str) -> Result<Output, ProgramError> {
    let name = || program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = output.map_err(|source| ProgramError::Run { program: name(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let (said, hint) = explain(&text, script);
    Err(ProgramError::Failed { program: name(), said, hint })
}

/// The first line of an error, with the line of the script that it names, and what that line may need.
fn explain(text: &str, script: &str) -> (String, String) {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut said = lines.first().map_or("failed without a word", |line| *line).to_owned();
    let number = lines.iter().find_map(|line| script_line(line));
    let rule = number.and_then(|n: usize| script.lines().nth(n.checked_sub(1)?));
    if let Some(rule) = rule {
        said += &format!(", which is {:?}", rule.trim());
    }
    if text.contains("Permission denied") || text.contains("Operation not permitted") {
        return (said, "; the container needs the capabilities NET_ADMIN and NET_RAW".into());
    }
    if text.contains("xtables.lock") {
        return (said, "; mount a writable /run, or give --native-nftables".into());
    }
    // At a COMMIT, legacy iptables does not tell which rule it was.
    let about = rule.filter(|rule| *rule != "COMMIT").unwrap_or(script);
    let needs = [
        ("TPROXY", "xt_TPROXY"),
        ("tproxy", "nft_tproxy"),
        ("CT --zone", "xt_CT"),
        ("CONNMARK", "xt_connmark"),
        ("multiport", "xt_multiport"),
        ("owner", "xt_owner"),
        ("REDIRECT", "xt_REDIRECT"),
        ("redirect", "nft_redir"),
        ("conntrack", "xt_conntrack"),
    ];
    let needs: Vec<_> =
        needs.iter().filter(|(word, _)| about.contains(word)).map(|n| n.1).collect();
    let hint = match needs[..] {
        [] => String::new(),
        _ => format!("; the kernel needs {}", needs.join(", ")),
    };
    (said, hint)
}

/// The number in `line 12 failed` of iptables, or in `/dev/stdin:12:3-9` of nft.
fn script_line(line: &str) -> Option<usize> {
    let after = line.split_once("line ").or_else(|| line.split_once("line: "));
    let after = after.or_else(|| line.split_once("stdin:"))?.1.trim_start();
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_line_and_what_it_needs() {
        let script = "*nat\n-A A -j B\n-A C -p tcp -j TPROXY --on-port 1\nCOMMIT\n";
        let (said, hint) = explain("iptables-restore: line 3 failed: No chain\nmore\n", script);
        assert_eq!(
            said,
            "iptables-restore: line 3 failed: No chain, which is \"-A C -p tcp -j TPROXY --on-port 1\""
        );
        assert_eq!(hint, "; the kernel needs xt_TPROXY");
        let (_, hint) = explain("iptables-restore: line 4 failed", script);
        assert_eq!(hint, "; the kernel needs xt_TPROXY");
        let (said, _) = explain("", script);
        assert_eq!(said, "failed without a word");
        let (_, hint) = explain("x: Permission denied (you must be root)", script);
        assert!(hint.contains("NET_ADMIN"));
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let lock = || OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
        let shell = find("sh").expect("a shell");
        let error = run(&shell, &["-c", "echo no >&2; exit 3"], &[], "", lock()).expect_err("3");
        assert_eq!(error.to_string(), "sh: no");
        run(&shell, &["-c", "cat >&2"], &[], "words\n", lock()).expect("no error");
        assert_eq!(find("no-such-program"), None);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let program = find("tail").expect("it is everywhere");
        let child = Command::new(program).args(["-f", "/dev/null"]).stdout(Stdio::piped()).spawn();
        let error = finish(child.expect("started"), "", Duration::ZERO).expect_err("killed");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
