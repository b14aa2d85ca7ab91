//! Small bodies in one piece, never without a limit. Large ones are read chunk by chunk (`net::response`).

use std::time::Duration;

use reqwest::header::CONTENT_LENGTH;

use crate::net::error::NetError;
use crate::net::response::Response;

/// Longest reading of an error's body: it only makes a message better.
const START_SECONDS: u64 = 10;

/// The whole body, at most `bytes_max` bytes of it after unpacking.
///
/// # Errors
/// [`NetError::TooLarge`] beyond that, and what [`Response::chunk`] can end with.
pub async fn read_capped(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, NetError> {
    let too_large = || NetError::TooLarge(bytes_max as u64);
    let announced = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > bytes_max as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        if body.len() + bytes.len() > bytes_max {
            return Err(too_large());
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

/// The body up to `bytes_max` bytes; the rest, if there is more, is left unread.
///
/// # Errors
/// What [`Response::chunk`] can end with.
pub async fn read_up_to(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, NetError> {
    let mut body = Vec::new();
    while body.len() < bytes_max
        && let Some(bytes) = response.chunk().await?
    {
        let wanted = bytes.len().min(bytes_max - body.len());
        body.extend_from_slice(&bytes[..wanted]);
    }
    Ok(body)
}

/// The first bytes of a body, for messages about an error answer: whatever came within 10 s and `bytes_max` bytes.
pub async fn read_start(mut response: Response, bytes_max: usize) -> Vec<u8> {
    let mut start = Vec::new();
    let reading = async {
        while start.len() < bytes_max
            && let Ok(Some(bytes)) = response.chunk().await
        {
            let wanted = bytes.len().min(bytes_max - start.len());
            start.extend_from_slice(&bytes[..wanted]);
        }
    };
    let _in_time = tokio::time::timeout(Duration::from_secs(START_SECONDS), reading).await;
    start
}
