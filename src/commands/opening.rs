//! Opening on a full disk: whatever opens the data directory is tried again until there is space, as everything is later on.

use std::time::Duration;

use crate::commands::error::CommandError;
use crate::pipeline::StartError;

/// A full disk is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// Runs `open` until the disk has room for it; `None` if `stop` resolves before that. `tell` hears whether it waits.
///
/// # Errors
/// Whatever else `open` finds.
pub async fn when_there_is_space<T>(
    mut open: impl AsyncFnMut() -> Result<T, CommandError>,
    stop: impl Future<Output = ()>,
    tell: impl Fn(bool),
) -> Result<Option<T>, CommandError> {
    let mut stop = std::pin::pin!(stop);
    let mut has_waited = false;
    loop {
        match open().await {
            Err(error) if is_full(&error) => {
                if !std::mem::replace(&mut has_waited, true) {
                    tracing::error!(writer = "start", %error, "the disk is full, everything waits");
                    tell(true);
                }
            }
            opened => {
                if has_waited {
                    tracing::info!(writer = "start", "there is space again, going on");
                    tell(false);
                }
                return opened.map(Some);
            }
        }
        tokio::select! {
            biased;
            () = &mut stop => return Ok(None),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

fn is_full(error: &CommandError) -> bool {
    match error {
        CommandError::Store(error) | CommandError::Start(StartError::Store(error)) => {
            error.is_full()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::store::error::StoreError;

    fn full() -> CommandError {
        StoreError::Full { path: "x".into(), free_bytes: 0 }.into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_is_waited_out_and_told_once_and_a_stop_ends_the_wait() {
        let (tries, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let open = async || {
            tries.set(tries.get() + 1);
            if tries.get() < 4 { Err(full()) } else { Ok(tries.get()) }
        };
        let never = std::future::pending();
        let opened = when_there_is_space(open, never, |waits| told.borrow_mut().push(waits)).await;
        assert_eq!(opened.unwrap(), Some(4));
        assert_eq!(*told.borrow(), [true, false]);
        let stop = tokio::time::sleep(Duration::from_secs(5));
        let stopped = when_there_is_space(async || Err::<(), _>(full()), stop, |_| ()).await;
        assert_eq!(stopped.unwrap(), None);
        let other = async || Err::<(), _>(CommandError::Usage(String::new()));
        let refused = when_there_is_space(other, std::future::pending(), |_| ()).await;
        assert!(matches!(refused, Err(CommandError::Usage(_))));
    }
}
