//! A contributor that does as it should, but for its receipts, which it changes before it signs them.

use std::sync::Arc;

use zklora_client::Session;
use zklora_contributor::service::Refusal;
use zklora_net::{Listener, deliver, read_frame, write_frame};
use zklora_proto::identity::Purpose;
use zklora_proto::message::{ErrorCode, Request, Response};
use zklora_proto::{Address, Receipt, SecretKey};

use crate::Contributor;

pub struct Liar {
    address: Address,
}

impl Liar {
    /// The same contributor as the world's, with its key and its service, at another address.
    pub fn new(world: &Contributor, change: impl Fn(&mut Receipt) + Send + Sync + 'static) -> Self {
        let listener = {
            let _guard = world.runtime.enter();
            Listener::bind(&world.state.key, "127.0.0.1:0".parse().unwrap()).unwrap()
        };
        let address = Address { port: listener.local_address().unwrap().port(), ..world.address.clone() };
        let (service, state) = (world.service.clone(), world.state.clone());
        let change = Arc::new(change);
        world.runtime.spawn(async move {
            while let Some(incoming) = listener.incoming().await {
                let connection = incoming.accept().await.unwrap();
                while let Ok((mut send, mut receive)) = connection.accept().await {
                    let (request, payload): (Request, _) = read_frame(&mut receive, 1 << 30).await.unwrap();
                    let client = *connection.peer();
                    let (service, state, change) = (service.clone(), state.clone(), change.clone());
                    let answer = move || match service.answer(client, request, payload) {
                        Ok((Response::Receipt { .. }, bytes)) => {
                            let mut receipt = Receipt::from_bytes(&bytes).unwrap();
                            change(&mut receipt);
                            let bytes = receipt.to_bytes();
                            let signature = state.key.sign(Purpose::ReceiptContributor, &bytes);
                            (Response::Receipt { signature }, bytes)
                        }
                        // The signature is one of the changed receipt, which is all that it wanted.
                        Err(Refusal { code: ErrorCode::Signature, .. }) => (Response::Accepted, vec![]),
                        answer => answer.unwrap(),
                    };
                    let (response, payload) = tokio::task::spawn_blocking(answer).await.unwrap();
                    write_frame(&mut send, &response, &payload).await.unwrap();
                    deliver(send).await;
                }
            }
        });
        Self { address }
    }

    pub fn session(&self, world: &Contributor) -> Session {
        Session::open(
            world.runtime.handle().clone(),
            SecretKey::generate(),
            &self.address,
            world.state.manifest.adapter_id(),
            *world.state.manifest.manifest().base_model(),
        )
        .unwrap()
    }
}
