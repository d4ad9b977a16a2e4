//! A system of committed tensors and the relations between them: what a proof is about, but for the adapter's commitments and the public results.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;
use zklora_circuit::commitment::Opening;
use zklora_proto::ModuleShape;

use crate::adapter::Adapter;
use crate::conversation::{Conversation, Shape, Value};
use crate::field::{E, F, signed, wipe};
use crate::layout::{self, ArrayId, Cells, Layout, Tensor};
use crate::lookup::{self, Lookups, Table};
use crate::relation::attention::{self, Attention};
use crate::relation::head::{self, Head};
use crate::relation::linear::{Form, Linear};
use crate::relation::norm::{Norm, Residual};
use crate::relation::public::{Fixed, Total, Weighed};
use crate::relation::{Cut, RelationError};
use crate::scene::Scene;

/// The most cells of tensors that a system may have: indices have room to spare on machines of 32 bits.
pub const MOST_CELLS: u128 = 1 << 30;

/// Collects tensors and relations.
#[derive(Debug, Default)]
pub struct Builder {
    layout: layout::Builder,
    relations: Vec<Relation>,
    adapter: Option<Adapter>,
    results: usize,
    tables: Vec<Table>,
    pairs: Vec<(usize, ArrayId, ArrayId)>,
    hidden: usize,
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
    /// The adapter: modules of these shapes, at least one.
    pub fn adapter(&mut self, shapes: &[ModuleShape]) {
        self.adapter = Some(Adapter::new(&mut self.layout, shapes));
    }

    /// A tensor of signed integers.
    pub fn signed(&mut self, rows: usize, columns: usize, bits: u32) -> Tensor {
        self.layout.signed(rows, columns, bits)
    }

    /// A tensor of integers that are not negative.
    pub fn unsigned(&mut self, rows: usize, columns: usize, bits: u32) -> Tensor {
        self.layout.unsigned(rows, columns, bits)
    }

    /// A tensor of signed 16 bits, with signed 24 bits in some columns.
    pub fn signed_hot(&mut self, rows: usize, columns: usize, hot: &[usize]) -> Tensor {
        self.layout.signed_hot(rows, columns, hot)
    }

    pub(crate) fn layout(&mut self) -> &mut layout::Builder {
        &mut self.layout
    }

    /// The tensors of a rounding.
    pub fn cut(&mut self, rows: usize, columns: usize, output_bits: u32, bits: u32) -> Cut {
        Cut::new(&mut self.layout, rows, columns, output_bits, bits)
    }

    /// A linear layer. Fails if its numbers could wrap around, or its parts do not fit together.
    pub fn linear(&mut self, linear: Linear) -> Result<(), RelationError> {
        linear.check()?;
        self.check_form(&linear.name, &linear.form)?;
        let outputs = [&linear.cut.output, &linear.cut.remainder];
        let size = (linear.form.input.rows, linear.form.weights.columns());
        if outputs.iter().any(|tensor| (tensor.rows, tensor.columns) != size) {
            return Err(RelationError::Shape { name: linear.name, what: "its outputs have another size" });
        }
        self.relations.push(Relation::Linear(Box::new(linear)));
        Ok(())
    }

    /// Whether sizes fit, and LoRA is of a module of the adapter. Without this, LoRA would be left out where there is no adapter.
    pub(crate) fn check_form(&self, name: &str, form: &Form) -> Result<(), RelationError> {
        let refuse = |what| Err(RelationError::Shape { name: name.into(), what });
        let (d_in, d_out) = (form.weights.rows(), form.weights.columns());
        if form.input.columns != d_in || form.bias.len() != d_out {
            return refuse("inputs, weights and bias have different sizes");
        }
        let Some(lora) = &form.lora else { return Ok(()) };
        let shapes = self.adapter.as_ref().map_or_else(Vec::new, Adapter::shapes);
        let Some(shape) = shapes.get(lora.module) else { return refuse("the adapter has no such module") };
        let size = (form.input.rows, shape.rank());
        let gain = lora.gain.as_ref().is_none_or(|gain| [gain.gain.len(), gain.bias.len()] == [d_in; 2]);
        let cut = [&lora.cut.output, &lora.cut.remainder];
        if shape.d_in() != d_in
            || lora.outputs.len() != d_out
            || lora.outputs.end > shape.d_out()
            || cut.iter().any(|tensor| (tensor.rows, tensor.columns) != size)
            || !gain
        {
            return refuse("LoRA has another size than its module");
        }
        Ok(())
    }

    /// A norm of a residual stream. Fails if its numbers could wrap around.
    pub fn norm(&mut self, name: &str, residual: Residual, epsilon: i64) -> Result<Norm, RelationError> {
        let norm = Norm::new(&mut self.layout, name, residual, epsilon);
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

    /// A public table of up to 2^16 values by index; entries beyond are zero. Returns its number.
    pub fn table(&mut self, values: impl IntoIterator<Item = i64>) -> usize {
        let mut values: Vec<F> = values.into_iter().map(signed).collect();
        values.resize(lookup::TABLE, F::ZERO);
        self.tables.push(Table { values: Some(values) });
        self.tables.len()
    }

    /// Two tensors of one size whose entries are index and value in a table: of each, bits and what is taken off the cells.
    pub fn looked_up(
        &mut self,
        rows: usize,
        columns: usize,
        table: usize,
        formats: [(u32, i64); 2],
    ) -> [Tensor; 2] {
        let [index, value] = formats.map(|(bits, offset)| self.layout.unranged(rows, columns, bits, offset));
        self.pairs.push((table, index.limbs[0].0, value.limbs[0].0));
        [index, value]
    }

    /// A rounding into a tensor that is there.
    pub fn cut_into(&mut self, output: Tensor, bits: u32) -> Cut {
        Cut::into(&mut self.layout, output, bits)
    }

    /// Attention. Fails if its numbers could wrap around.
    pub fn attention(&mut self, name: &str, inputs: attention::Inputs) -> Result<Attention, RelationError> {
        let hidden = self.hidden;
        self.hidden += 3;
        let attention = Attention::new(self, name, inputs, hidden)?;
        self.relations.push(Relation::Attention(Box::new(attention.clone())));
        Ok(attention)
    }

    /// The head. Fails if its numbers could wrap around.
    pub fn head(&mut self, name: &str, inputs: head::Inputs) -> Result<Head, RelationError> {
        let head = Head::new(self, name, inputs)?;
        self.relations.push(Relation::Head(Box::new(head.clone())));
        Ok(head)
    }

    /// Lays everything out. Fails if there are more cells than [`MOST_CELLS`].
    pub fn build(mut self) -> Result<System, RelationError> {
        if self.layout.cells() > MOST_CELLS {
            return Err(RelationError::Shape {
                name: "the system".into(),
                what: "it has more than 2^30 cells",
            });
        }
        let lookups = Lookups::new(&mut self.layout, std::mem::take(&mut self.tables), &self.pairs);
        let layout = self.layout.build();
        let Self { relations, adapter, results, hidden, .. } = self;
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

/// The cells of a system, all of them secret.
pub struct Witness {
    pub(crate) cells: Vec<F>,
    /// Integers that no cell has: queries, keys and values.
    pub(crate) hidden: Vec<Vec<i64>>,
}

/// A value that has no place in its tensor: what it is part of cannot be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value is out of range")]
pub struct OutOfRange;

impl Witness {
    /// Of zeros.
    pub fn new(system: &System) -> Self {
        Self { cells: F::zero_vec(system.layout.sizes.cells), hidden: vec![Vec::new(); system.hidden] }
    }

    /// Fills in a tensor, row-major. Which value was out of range is not said: it is a secret.
    pub fn set(&mut self, system: &System, tensor: &Tensor, values: &[i64]) -> Result<(), OutOfRange> {
        let columns = tensor.columns;
        let fits = values.iter().enumerate().all(|(i, &value)| tensor.holds(i % columns, value));
        if values.len() != tensor.rows * columns || !fits {
            return Err(OutOfRange);
        }
        let offsets: Vec<i64> = (0..columns).map(|column| tensor.format(column).0).collect();
        let mut fill = |id: ArrayId, bits: u32, shift: u32, of: &dyn Fn(usize) -> usize| {
            for block in &system.layout.array(id).blocks {
                let width = 1 << block.column_bits;
                for (row, cells) in self.cells[block.range()].chunks_mut(width).enumerate() {
                    for (column, cell) in cells.iter_mut().enumerate() {
                        let column = of(block.column + column);
                        let value = values[(block.row + row) * columns + column] + offsets[column];
                        *cell = F::from_u64((value as u64 >> shift) & ((1 << bits) - 1));
                    }
                }
            }
        };
        let mut shift = 0;
        for &(id, bits) in &tensor.limbs {
            fill(id, bits, shift, &|column| column);
            shift += bits;
        }
        if let Some(hot) = &tensor.hot {
            fill(hot.high, u32::BITS, shift, &|column| hot.columns[column]);
        }
        Ok(())
    }

    /// Fills in a rounding.
    pub fn set_cut(
        &mut self,
        system: &System,
        cut: &Cut,
        outputs: &[i64],
        remainders: &[i64],
    ) -> Result<(), OutOfRange> {
        self.set(system, &cut.output, outputs)?;
        self.set(system, &cut.remainder, remainders)
    }

    /// Fills in the adapter.
    pub fn set_adapter(&mut self, system: &System, openings: &[&Opening]) {
        if let Some(adapter) = &system.adapter {
            adapter.fill(&system.layout, &mut self.cells, openings);
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        wipe(&mut self.cells);
        self.hidden.iter_mut().for_each(|values| wipe(values));
    }
}
