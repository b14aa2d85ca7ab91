//! The directory: DID documents of the world's accounts, in the forms that the real one has served.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value as Json, json};

use super::faults::{Fault, Place, before_headers};
use super::network::{Net, Standing};
use super::server::{self, Answer, Connection, Log, Server};

pub struct Plc {
    server: Server,
    log: Arc<Log>,
}

impl Plc {
    pub(super) fn start(net: Arc<Net>) -> Self {
        let log = Arc::new(Log::default());
        let kept = Arc::clone(&log);
        let server = Server::start("plc", move |request, connection| {
            handle(Arc::clone(&net), Arc::clone(&log), request, connection)
        });
        Self { server, log: kept }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.log.len()
    }
}

async fn handle(
    net: Arc<Net>,
    log: Arc<Log>,
    request: Request<Incoming>,
    connection: Connection,
) -> Answer {
    let did = server::decoded(request.uri().path().trim_start_matches('/'));
    let number = log.arrived("", &did, &request);
    let answer = document_or_fault(&net, &did, &connection).await;
    if let Ok(answer) = &answer {
        log.answered(number, answer.status().as_u16());
    }
    answer
}

async fn document_or_fault(net: &Net, did: &str, connection: &Connection) -> Answer {
    let mut fault = net.faults.take(Place::Directory, None, did);
    if let Some(early) = fault.take() {
        match before_headers(early, &net.faults, connection).await {
            Ok(answer) => return answer,
            Err(later) => fault = Some(later),
        }
    }
    if let Some(Fault::SlowHeaders(wait)) = fault {
        net.faults.note("slow_headers");
        tokio::time::sleep(wait).await;
        fault = None;
    }
    let known = net.world.index_of(did).map(|index| (index, net.now(index).standing));
    let Some((index, standing)) = known else { return Ok(not_registered(did)) };
    match standing {
        Standing::Unregistered => return Ok(not_registered(did)),
        Standing::Tombstoned => return Ok(not_available(404, did)),
        _ => {}
    }
    let mut document = document(net, index);
    let name = fault.as_ref().map(Fault::name);
    let mut replaced = None;
    match fault {
        Some(Fault::NotRegistered) => replaced = Some(not_registered(did)),
        Some(Fault::Tombstoned) => replaced = Some(not_available(404, did)),
        Some(Fault::TombstonedGone) => replaced = Some(not_available(410, did)),
        Some(Fault::NotJson) => {
            replaced = Some(server::answer(200, "application/json", "<html>busy</html>"));
        }
        Some(Fault::NotADocument) => replaced = Some(server::json(200, &json!(["no", "document"]))),
        Some(Fault::DocumentForOther) => document["id"] = json!("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"),
        Some(Fault::NoPds) => document["service"] = json!([]),
        Some(Fault::EmptyPds) => set_endpoint(&mut document, ""),
        Some(Fault::Endpoint(endpoint)) => set_endpoint(&mut document, &endpoint),
        Some(Fault::NoKey) => document["verificationMethod"] = json!([]),
        Some(Fault::Oversized(bytes)) => {
            // Not through the writer of JSON: everybody else waits here meanwhile.
            let (text, padding) = (document.to_string(), "x".repeat(bytes));
            let text = format!("{{\"padding\":\"{padding}\",{}", &text[1..]);
            replaced = Some(server::answer(200, "application/did+ld+json", text));
        }
        Some(other) => panic!("the directory cannot act out {}", other.name()),
        None => {}
    }
    if let Some(name) = name {
        net.faults.note(name);
    }
    let text = document.to_string();
    Ok(replaced.unwrap_or_else(|| server::answer(200, "application/did+ld+json", text)))
}

fn not_registered(did: &str) -> hyper::Response<server::Body> {
    server::json(404, &json!({"message": format!("DID not registered: {did}")}))
}

fn not_available(code: u16, did: &str) -> hyper::Response<server::Body> {
    server::json(code, &json!({"message": format!("DID not available: {did}")}))
}

fn set_endpoint(document: &mut Json, endpoint: &str) {
    for service in document["service"].as_array_mut().expect("the world's documents have services")
    {
        if service["type"] == "AtprotoPersonalDataServer" {
            service["serviceEndpoint"] = json!(endpoint);
        }
    }
}

/// An account's document. By its index: every fourth is in the legacy form, some have other services, keys and names first.
pub fn document(net: &Net, index: usize) -> Json {
    let now = net.now(index);
    let (did, key) = (net.world.did(index), net.world.key_after(index, now.rotations));
    let is_legacy = index % 4 == 3;
    let mut methods = Vec::new();
    if index % 5 == 2 {
        methods.push(json!({
            "id": format!("{did}#atproto_label"), "type": "Multikey", "controller": did,
            "publicKeyMultibase": super::forge::Key::from_seed(index as u64).multikey(),
        }));
    }
    methods.push(if is_legacy {
        json!({
            "id": "#atproto", "type": key.legacy_type(), "controller": did,
            "publicKeyMultibase": key.legacy_multibase(),
        })
    } else {
        json!({
            "id": format!("{did}#atproto"), "type": "Multikey", "controller": did,
            "publicKeyMultibase": key.multikey(),
        })
    });
    let mut services = Vec::new();
    if index % 7 == 1 {
        services.push(json!({
            "id": "#atproto_labeler", "type": "AtprotoLabeler",
            "serviceEndpoint": "https://labeler.example.com",
        }));
    }
    let id = if index.is_multiple_of(6) {
        format!("{did}#atproto_pds")
    } else {
        "#atproto_pds".to_owned()
    };
    services.push(json!({
        "id": id, "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": net.endpoint(now.host),
    }));
    let handle = format!("at://{}", net.world.handle(index));
    let names = match index % 9 {
        4 => json!(["https://example.com/me", handle]),
        _ => json!([handle]),
    };
    json!({
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": did, "alsoKnownAs": names, "verificationMethod": methods, "service": services,
    })
}
