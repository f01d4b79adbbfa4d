//! Inboxes: queues for answers that go with whoever reads them.

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{InProcessBus, lock};
use crate::bus::styles::{Inbox, Inboxes, Letterbox, REPLY_EXCHANGE};
use crate::bus::{Binding, Settlement, SubscribeError, Subscriber as _, Subscription};

#[async_trait]
impl Inboxes for InProcessBus {
    async fn open_inbox(&self, capacity: usize) -> Result<Inbox, SubscribeError> {
        let capacity = capacity.max(1);
        let (sender, answers) = mpsc::channel(capacity);
        let letterbox = Letterbox(sender);
        let address = format!("inbox.{}", Uuid::now_v7().simple());
        let bindings = vec![Binding::new(REPLY_EXCHANGE, &*address)];
        let subscription = Subscription {
            prefetch: capacity,
            shards: 1,
            ..Subscription::new(&*address, bindings)
        };
        let mut deliveries = self.subscribe(subscription).await?;
        let queue = Removal { bus: self.clone(), queue: address.clone() };
        let receiving = AbortOnDropHandle::new(tokio::spawn(async move {
            let _queue = queue;
            while let Some(delivery) = deliveries.next().await {
                let (body, headers) = (delivery.body.clone(), delivery.headers.clone());
                if !letterbox.put(&body, headers).await {
                    return;
                }
                // It cannot fail here, and if it did the answer would come twice, which is no harm.
                drop(delivery.settle(Settlement::Ack).await);
            }
        }));
        Ok(Inbox::new(address, answers, receiving))
    }
}

/// Takes the queue away, and what is in it: nobody is there to miss it.
struct Removal {
    bus: InProcessBus,
    queue: String,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let queue = lock(&self.bus.0.queues).remove(&self.queue);
        if let Some(queue) = queue {
            queue.close();
        }
    }
}
