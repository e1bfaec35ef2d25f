//! Threads for work that blocks and goes into other network namespaces. Not here: any such work.
//!
//! Threads of an async runtime must never be found in another namespace than the machine's; these may be in
//! any, so each piece of work says first where it belongs.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// Netlink, a few files, a child process: none of it needs a deep stack.
const STACK_BYTES: usize = 256 << 10;

/// Some threads. They end when this value does, each after its work.
#[derive(Clone, Debug)]
pub(crate) struct Hands {
    queue: mpsc::Sender<Work>,
}

impl Hands {
    /// `n` threads called `name`.
    pub(crate) fn new(name: &str, n: usize) -> io::Result<Self> {
        let (queue, works) = mpsc::channel::<Work>();
        let works = Arc::new(Mutex::new(works));
        for number in 0..n {
            let works = Arc::clone(&works);
            let body = move || {
                loop {
                    let next = works.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    work();
                }
            };
            let name = format!("{name}-{number}");
            thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(body)?;
        }
        Ok(Self { queue })
    }

    /// Does `work` when a thread is free. Its panic is the caller's.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (done, result) = oneshot::channel();
        let work = move || {
            // Who has gone meanwhile does not want to know.
            let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
        };
        self.queue.send(Box::new(work)).expect("threads end only with their last owner");
        match result.await.expect("work is done even when it panics") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn work_is_done_and_a_panic_costs_no_thread() {
        let hands = Hands::new("test", 1).expect("a thread");
        let panics = hands.clone();
        let panicked = tokio::spawn(async move { panics.run(|| panic!("on purpose")).await });
        assert!(panicked.await.is_err_and(|error| error.is_panic()));
        assert_eq!(hands.run(|| 7).await, 7);
    }
}
