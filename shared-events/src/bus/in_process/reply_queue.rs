//! Reply queues, which end with their reader.

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{InProcessBus, lock};
use crate::bus::{
    Binding, REPLY_EXCHANGE, ReplyQueue, ReplyQueues, ReplySender, Settlement, SubscribeError,
    Subscriber as _, Subscription,
};

#[async_trait]
impl ReplyQueues for InProcessBus {
    async fn open_reply_queue(&self, capacity: usize) -> Result<ReplyQueue, SubscribeError> {
        let capacity = capacity.max(1);
        let (sender, received) = mpsc::channel(capacity);
        let replies = ReplySender(sender);
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
                if !replies.put(&body, headers).await {
                    return;
                }
                // A failure here would only deliver the reply twice, which is harmless.
                drop(delivery.settle(Settlement::Ack).await);
            }
        }));
        Ok(ReplyQueue::new(address, received, receiving))
    }
}

/// Removes the queue and its messages when its reader is gone.
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
