//! h2spec and httpwg-cli against the HTTP/2 side: no failure that is not allowed by name, and at
//! least as many passes as Envoy has in the same minute on the same machine.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use tests::conformance::{Allowed, h2spec, httpwg, judge, target};
use tests::proxy::Kind;

fn block_on(test: impl Future<Output = anyhow::Result<Vec<String>>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let faults = runtime.block_on(test).unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn h2spec_passes() {
    block_on(async {
        let (envoy, port) = target(Kind::Envoy).await?;
        let (ours, our_port) = target(Kind::Outrigger).await?;
        let (dir, our_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let (theirs, mine) =
            tokio::join!(h2spec(port, dir.path()), h2spec(our_port, our_dir.path()));
        let (theirs, mut mine) = (theirs?, mine?);
        let allowed = Allowed::load()?.h2spec;
        if !judge(&mine, &theirs, &allowed).is_empty() {
            eprintln!("once more: {:?}", mine.failed);
            let second = tempfile::tempdir()?;
            mine = mine.again(&h2spec(our_port, second.path()).await?);
        }
        drop((envoy, ours));
        eprintln!("h2spec: Envoy passes {}, Outrigger {}", theirs.passed, mine.passed);
        Ok(judge(&mine, &theirs, &allowed))
    });
}

#[test]
fn httpwg_passes() {
    block_on(async {
        let (envoy, port) = target(Kind::Envoy).await?;
        let theirs = httpwg(port).await?;
        drop(envoy);
        let (ours, port) = target(Kind::Outrigger).await?;
        let mut mine = httpwg(port).await?;
        let allowed = Allowed::load()?.httpwg;
        if !judge(&mine, &theirs, &allowed).is_empty() {
            eprintln!("once more: {:?}", mine.failed);
            mine = mine.again(&httpwg(port).await?);
        }
        drop(ours);
        eprintln!("httpwg: Envoy passes {}, Outrigger {}", theirs.passed, mine.passed);
        Ok(judge(&mine, &theirs, &allowed))
    });
}
