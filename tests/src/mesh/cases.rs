//! Cases as data: `tests/mesh/rows.yaml` and `tests/mesh/configurations/*.yaml`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Mesh;
use super::network::Network;
use super::request::{Answer, Request};

/// A request of the sample mesh and what has to come back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub name: String,
    pub request: Request,
    #[serde(default)]
    pub expect: Expect,
}

/// What an answer has to be, whoever proxies.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    #[serde(default)]
    pub status: u16,
    /// Shares of the pods that answer, within 0.2.
    #[serde(default)]
    pub pods: BTreeMap<String, f64>,
    /// Parts of the body.
    #[serde(default)]
    pub body: Vec<String>,
    /// What the body must not have.
    #[serde(default)]
    pub without: Vec<String>,
}

/// Istio resources to push and the requests that show their effect.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    pub name: String,
    /// YAML documents.
    pub resources: String,
    pub requests: Vec<Request>,
}

/// The rows of the sample mesh, over IPv4 and REDIRECT.
///
/// # Errors
/// The file cannot be read.
pub fn rows() -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(super::rig().join("rows.yaml"))?;
    Ok(serde_yaml_ng::from_str(&text)?)
}

/// The rows of a mesh with another network; `ipv6`: to its IPv6 addresses.
///
/// # Errors
/// See [`rows`].
pub fn rows_over(network: Network, ipv6: bool) -> Result<Vec<Row>> {
    let mut rows = rows()?;
    for row in &mut rows {
        row.request.ipv6 = ipv6;
        // Endpoints are of the mesh's first family, whichever the application has dialled.
        let peer = network.peer(&row.request.from, network.ipv6_only())?;
        for part in &mut row.expect.body {
            *part = part.replace("127.0.0.6", &peer);
        }
    }
    Ok(rows)
}

/// What each row of the table answers, and what is wrong with it.
///
/// # Errors
/// See [`Mesh::ask`].
pub fn table(mesh: &Mesh, rows: &[Row]) -> Result<(Vec<Vec<Answer>>, Vec<String>)> {
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    for row in rows {
        let (answers, pods) = answers(mesh, &row.request)?;
        wrong.extend(row.judge(&answers, &pods).into_iter().map(|w| format!("{}: {w}", row.name)));
        all.push(answers);
    }
    Ok((all, wrong))
}

/// All configurations, by name of file.
///
/// # Errors
/// A file cannot be read.
pub fn configurations() -> Result<Vec<Configuration>> {
    let mut paths: Vec<_> = std::fs::read_dir(super::rig().join("configurations"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path)?;
        let more: Vec<Configuration> =
            serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?;
        all.extend(more);
    }
    Ok(all)
}

/// Sends a request as often as it says; answers without pods' names, equal ones once, in order.
///
/// # Errors
/// See [`Mesh::ask`].
pub fn answers(mesh: &Mesh, request: &Request) -> Result<(Vec<Answer>, BTreeMap<String, u32>)> {
    let mut all = Vec::new();
    let mut pods: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..request.times {
        let answer = mesh.ask(request)?;
        if let Some(pod) = answer.pod() {
            *pods.entry(pod).or_default() += 1;
        }
        all.push(if request.times > 1 { answer.anonymous() } else { answer });
    }
    all.sort();
    all.dedup();
    Ok((all, pods))
}

impl Row {
    /// What is wrong with the answers; empty when all is right.
    #[must_use]
    pub fn judge(&self, answers: &[Answer], pods: &BTreeMap<String, u32>) -> Vec<String> {
        let mut wrong = Vec::new();
        for answer in answers {
            if answer.status != self.expect.status {
                wrong.push(format!("status is not {}: {answer:?}", self.expect.status));
            }
            for part in self.expect.body.iter().filter(|part| !answer.body.contains(*part)) {
                wrong.push(format!("no {part:?} in {answer:?}"));
            }
            for part in self.expect.without.iter().filter(|part| answer.body.contains(*part)) {
                wrong.push(format!("{part:?} in {answer:?}"));
            }
        }
        let total = f64::from(self.request.times);
        for (pod, share) in &self.expect.pods {
            let seen = f64::from(pods.get(pod).copied().unwrap_or(0)) / total;
            if (seen - share).abs() > 0.2 {
                wrong.push(format!("{pod} answered {seen:.2} of the requests, not {share:.2}"));
            }
        }
        for pod in pods
            .keys()
            .filter(|pod| !self.expect.pods.is_empty() && !self.expect.pods.contains_key(*pod))
        {
            wrong.push(format!("{pod} answered"));
        }
        wrong
    }
}
