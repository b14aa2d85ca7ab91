//! Which revision a host has now (`com.atproto.sync.getLatestCommit`): a refreshed account is fetched only if it is another one.
//!
//! It is asked under the host's permit, and what it answers is judged as for a repository: a host that refuses, fails, or says that
//! the account is gone means the same in both. The answer is a host's word and proves nothing: unchanged is believed, because the
//! host could as well have served the old repository again; whatever is newer is fetched and proven.

use serde::Deserialize;
use url::Url;

use super::{Tools, ask_why, counted, told, xrpc};
use crate::domain::tid::is_tid;
use crate::domain::verdict::{Cause, Failure, HostSignal};
use crate::limits::ERROR_BODY_BYTES_MAX;
use crate::net::answer;
use crate::net::body::read_start;
use crate::net::client::{Request, Trust};
use crate::stages::messages::{Lane, News, Permit, Subject};
use crate::telemetry::Stopwatch;

/// What the host says.
#[derive(Deserialize)]
struct Latest {
    rev: String,
}

/// Asks for the newest revision of a refreshed account; `Ok`: it is newer than the one that is held.
///
/// # Errors
/// That it is not, or what kept the host from saying.
pub(super) async fn newer(
    tools: &Tools,
    subject: &Subject,
    endpoint: &Url,
    permit: &Permit,
) -> Result<(), News> {
    let mut url = xrpc(endpoint, "com.atproto.sync.getLatestCommit");
    url.query_pairs_mut().append_pair("did", subject.did.as_str());
    let asking = Stopwatch::start();
    let (news, leaves_open_why) = match ask(tools, &url, permit).await {
        Ok(rev) => {
            counted(asking, None);
            return judge(&rev, subject.last_rev.as_deref().unwrap_or_default());
        }
        Err(failed) => failed,
    };
    counted(asking, Some(&news));
    Err(match news {
        News::Failed(failure) if leaves_open_why => {
            News::Failed(ask_why(tools, &subject.did, endpoint, permit, failure).await)
        }
        news => news,
    })
}

/// The revision; a failure comes with whether it leaves open why.
async fn ask(tools: &Tools, url: &Url, permit: &Permit) -> Result<String, (News, bool)> {
    let request =
        Request { trust: Trust::Stranger, accept: "application/json", is_transfer: false };
    let lane = Lane::new(permit);
    let asked = tools.client.get_by_turns(url, &request, |host| lane.lead_to(host)).await;
    let response = asked.map_err(|error| (told(&lane, &error), false))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let start = read_start(response, ERROR_BODY_BYTES_MAX).await;
    let now_ms = tools.clock.wall_ms();
    if status != 200 {
        let (failure, signal) = answer::repo_outcome(status, &headers, &start, now_ms);
        lane.said(signal);
        return Err((News::Failed(failure), answer::leaves_open_why(status, &start)));
    }
    lane.said(HostSignal::Usable(answer::rate_window(&headers, now_ms)));
    match serde_json::from_slice::<Latest>(&start) {
        Ok(latest) if is_tid(&latest.rev) => Ok(latest.rev),
        // Nonsense with 200 is the account's own trouble, as it is for a repository.
        _ => Err((News::Failed(answer::repo_outcome(status, &headers, &start, now_ms).0), false)),
    }
}

fn judge(found: &str, held: &str) -> Result<(), News> {
    match found.cmp(held) {
        std::cmp::Ordering::Greater => Ok(()),
        std::cmp::Ordering::Equal => Err(News::Unchanged),
        std::cmp::Ordering::Less => {
            let detail = format!("the host serves revision {found}, {held} was exported before");
            Err(News::Failed(Failure::new(Cause::Stale, None, detail)))
        }
    }
}
