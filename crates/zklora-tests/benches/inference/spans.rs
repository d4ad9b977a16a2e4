//! Time spent in the spans of the library, by name.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

static SPENT: LazyLock<Mutex<BTreeMap<&'static str, Duration>>> = LazyLock::new(Mutex::default);

/// From now on, spans are timed. Before, they cost next to nothing.
pub fn start() {
    tracing::subscriber::set_global_default(Registry::default().with(Timing)).unwrap();
}

/// What was spent since the last time this was asked.
pub fn take() -> BTreeMap<&'static str, Duration> {
    std::mem::take(&mut SPENT.lock().unwrap())
}

struct Timing;

/// When a span was entered.
struct Entered(Instant);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Timing {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("zklora_base_user")
    }

    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        context.span(id).unwrap().extensions_mut().insert(Entered(Instant::now()));
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        context.span(id).unwrap().extensions_mut().replace(Entered(Instant::now()));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let spent = span.extensions().get::<Entered>().unwrap().0.elapsed();
        *SPENT.lock().unwrap().entry(span.name()).or_default() += spent;
    }
}
