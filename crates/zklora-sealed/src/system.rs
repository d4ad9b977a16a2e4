//! A system of committed tensors and the relations between them: what a proof is about, but for the adapter's commitments and the public results.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;
use zklora_circuit::commitment::Opening;
use zklora_proto::ModuleShape;

use crate::adapter::Adapter;
use crate::conversation::{Conversation, Shape, Value};
use crate::field::E;
use crate::layout::{Cells, Layout, Tensor};
use crate::lookup::Lookups;
use crate::relation::RelationError;
use crate::relation::attention::{self, Attention};
use crate::relation::head::{self, Head};
use crate::relation::linear::Linear;
use crate::relation::norm::{Norm, Residual};
use crate::relation::public::{Fixed, Total, Weighed};
use crate::scene::Scene;
use crate::tensors::Tensors;
use crate::witness::Witness;

/// The most cells of tensors that a system may have: indices have room to spare on machines of 32 bits.
pub const MOST_CELLS: u128 = 1 << 30;

/// Collects tensors and relations.
#[derive(Debug, Default)]
pub struct Builder {
    tensors: Tensors,
    relations: Vec<Relation>,
    results: usize,
    hidden: usize,
}

impl std::ops::Deref for Builder {
    type Target = Tensors;
    fn deref(&self) -> &Tensors {
        &self.tensors
    }
}

impl std::ops::DerefMut for Builder {
    fn deref_mut(&mut self) -> &mut Tensors {
        &mut self.tensors
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Relation {
    Attention(Box<Attention>),
    Head(Box<Head>),
    Linear(Box<Linear>),
    Norm(Box<Norm>),
    Fixed(Fixed),
    Total(Total),
}

/// See the module's documentation.
#[derive(Debug, PartialEq, Eq)]
pub struct System {
    layout: Layout,
    lookups: Lookups,
    relations: Vec<Relation>,
    adapter: Option<Adapter>,
    results: usize,
    hidden: usize,
    digest: [u8; 32],
}

impl Relation {
    /// Everything that decides what it says, for a digest.
    fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        let (tag, tensors): (u8, Vec<&Tensor>) = match self {
            Self::Linear(linear) => {
                let mut tensors = vec![&linear.form.input, &linear.cut.output, &linear.cut.remainder];
                let lora = linear.form.lora.iter();
                tensors.extend(lora.flat_map(|lora| [&lora.cut.output, &lora.cut.remainder]));
                (0, tensors)
            }
            Self::Fixed(fixed) => (1, vec![&fixed.tensor]),
            Self::Total(total) => (2, total.terms.iter().map(|term| &term.tensor).collect()),
            Self::Norm(norm) => (3, norm.tensors().collect()),
            Self::Attention(attention) => (4, attention.tensors().collect()),
            Self::Head(head) => (5, head.tensors().collect()),
        };
        hash(&[tag]);
        hash(&(tensors.len() as u64).to_le_bytes());
        tensors.into_iter().for_each(|tensor| tensor.describe(hash));
        match self {
            Self::Linear(linear) => linear.describe(hash),
            Self::Fixed(fixed) => {
                hash(&(fixed.values.len() as u64).to_le_bytes());
                fixed.values.iter().for_each(|x| hash(&x.to_le_bytes()));
            }
            Self::Total(total) => total.describe(hash),
            Self::Norm(norm) => norm.describe(hash),
            Self::Attention(attention) => attention.describe(hash),
            Self::Head(head) => head.describe(hash),
        }
    }
}

impl Builder {
    /// A linear layer. Fails if its numbers could wrap around, or its parts do not fit together.
    pub fn linear(&mut self, linear: Linear) -> Result<(), RelationError> {
        linear.check()?;
        linear.form.fits(&linear.name, self.adapter_of())?;
        let outputs = [&linear.cut.output, &linear.cut.remainder];
        let size = (linear.form.input.rows, linear.form.weights.columns());
        if outputs.iter().any(|tensor| (tensor.rows, tensor.columns) != size) {
            return Err(RelationError::Shape { name: linear.name, what: "its outputs have another size" });
        }
        self.relations.push(Relation::Linear(Box::new(linear)));
        Ok(())
    }

    /// A norm of a residual stream. Fails if its numbers could wrap around.
    pub fn norm(&mut self, name: &str, residual: Residual, epsilon: i64) -> Result<Norm, RelationError> {
        let norm = Norm::new(self.tensors.layout(), name, residual, epsilon);
        norm.check()?;
        self.relations.push(Relation::Norm(Box::new(norm.clone())));
        Ok(norm)
    }

    /// A tensor that is public. Fails if it has another size.
    pub fn fixed(&mut self, tensor: Tensor, values: impl Into<Arc<[i64]>>) -> Result<(), RelationError> {
        let values = values.into();
        if tensor.rows.checked_mul(tensor.columns) != Some(values.len()) {
            return Err(RelationError::Shape { name: "a public tensor".into(), what: "it has another size" });
        }
        self.relations.push(Relation::Fixed(Fixed { tensor, values }));
        Ok(())
    }

    /// A public result, `Σ weight·entry`. Fails if it could wrap around. Returns its number.
    pub fn total(&mut self, name: &str, terms: Vec<Weighed>) -> Result<usize, RelationError> {
        let total = Total { name: name.into(), terms, result: self.results };
        total.check()?;
        self.relations.push(Relation::Total(total));
        self.results += 1;
        Ok(self.results - 1)
    }

    /// Attention. Fails if its numbers could wrap around.
    pub fn attention(&mut self, name: &str, inputs: attention::Inputs) -> Result<Attention, RelationError> {
        let hidden = self.hidden;
        self.hidden += 3;
        let attention = Attention::new(&mut self.tensors, name, inputs, hidden)?;
        self.relations.push(Relation::Attention(Box::new(attention.clone())));
        Ok(attention)
    }

    /// The head. Fails if its numbers could wrap around.
    pub fn head(&mut self, name: &str, inputs: head::Inputs) -> Result<Head, RelationError> {
        let head = Head::new(&mut self.tensors, name, inputs)?;
        self.relations.push(Relation::Head(Box::new(head.clone())));
        Ok(head)
    }

    /// Lays everything out. Fails if there are more cells than [`MOST_CELLS`].
    pub fn build(mut self) -> Result<System, RelationError> {
        if self.tensors.layout().cells() > MOST_CELLS {
            return Err(RelationError::Shape {
                name: "the system".into(),
                what: "it has more than 2^30 cells",
            });
        }
        let Self { tensors, relations, results, hidden } = self;
        let (mut arrays, adapter, tables, pairs) = tensors.parts();
        let lookups = Lookups::new(&mut arrays, tables, &pairs);
        let layout = arrays.build();
        let mut system = System { layout, lookups, relations, adapter, results, hidden, digest: [0; 32] };
        system.digest = system.describe();
        Ok(system)
    }
}

impl System {
    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The lookups.
    pub fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// The shapes of the adapter's modules; none without an adapter.
    pub fn modules(&self) -> Vec<ModuleShape> {
        self.adapter.as_ref().map_or_else(Vec::new, Adapter::shapes)
    }

    /// Public results.
    pub fn results(&self) -> usize {
        self.results
    }

    /// A digest of all that decides what is shown: arrays, ranges, tables, relations and their public numbers.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn describe(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 sealed system");
        let mut hash = |bytes: &[u8]| {
            hasher.update(bytes);
        };
        // Each list after its length, each choice after its tag.
        let mut number = |x: u64| hash(&x.to_le_bytes());
        let sizes = &self.layout.sizes;
        for x in [sizes.cells, sizes.row_bits, sizes.columns, sizes.queries, self.layout.face, self.results] {
            number(x as u64);
        }
        number(self.layout.arrays().count() as u64);
        for (_, array) in self.layout.arrays() {
            let bits = match array.cells {
                Cells::Limb { bits } => bits,
                Cells::Free => u32::MAX,
            };
            [array.rows as u64, array.columns as u64, bits.into()].into_iter().for_each(&mut number);
            array.blocks.iter().for_each(|block| number(block.offset as u64));
        }
        let modules = self.modules();
        number(modules.len() as u64);
        for shape in modules {
            [shape.d_in(), shape.rank(), shape.d_out()].into_iter().for_each(|x| number(x as u64));
        }
        self.lookups.describe(&mut hash);
        hash(&(self.relations.len() as u64).to_le_bytes());
        for relation in &self.relations {
            relation.describe(&mut hash);
        }
        *hasher.finalize().as_bytes()
    }

    /// A witness of zeros, but for the adapter, whose openings are in the order of its modules.
    pub fn witness(&self, openings: &[&Opening]) -> Witness {
        let mut witness = Witness::new(&self.layout, self.hidden);
        if let Some(adapter) = &self.adapter {
            adapter.fill(&self.layout, &mut witness.cells, openings);
        }
        witness
    }

    /// How many messages and products its conversation has.
    pub fn shape(&self) -> Shape {
        let mut scene = Scene::new(Conversation::of_nobody(), &self.layout, None);
        let end = self.converse(&mut scene, &vec![0; self.results]);
        end.check(&mut scene.run, E::ZERO);
        scene.run.shape()
    }

    /// The conversation: **the one description of the protocol**, which prover, verifier and [`System::shape`] run.
    ///
    /// What comes before is the caller's: everything public, the commitment to the pads and that to the cells have been absorbed. What is left when it ends is one point at
    /// which the commitment is opened.
    pub(crate) fn converse(&self, scene: &mut Scene<'_>, results: &[i64]) -> End {
        let beta = self.adapter.as_ref().map_or(E::ZERO, |adapter| adapter.converse(scene));
        self.lookups.converse(scene);
        for relation in &self.relations {
            match relation {
                Relation::Linear(linear) => linear.converse(scene, self.adapter.as_ref()),
                Relation::Attention(attention) => attention.converse(scene, self.adapter.as_ref()),
                Relation::Head(head) => head.converse(scene),
                Relation::Norm(norm) => norm.converse(scene),
                Relation::Fixed(fixed) => fixed.converse(scene),
                Relation::Total(total) => total.converse(scene, results),
            }
        }
        let (point, value, weight) = scene.reduce();
        End { beta, point, value, weight }
    }
}

/// What a conversation ends with: the cells' extension at `point` is V, and `value = V·weight` has to hold.
pub(crate) struct End {
    pub(crate) beta: E,
    pub(crate) point: Vec<E>,
    value: Value,
    weight: E,
}

impl End {
    /// The last check, for the opened V.
    pub(crate) fn check(&self, run: &mut Conversation<'_>, opened: E) {
        run.check(-(opened * self.weight), &[(E::ONE, self.value)], &[]);
    }
}
