//! The identity of a circuit.

use zklora_proto::ModuleShape;

use crate::parameters::Security;

/// What a circuit is, before it is built: the parameter set and the shapes of its modules, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CircuitId([u8; 32]);

impl CircuitId {
    /// The id: BLAKE3 over the version of the circuit's layout, the parameter set's name and every shape.
    pub fn new(security: Security, shapes: &[ModuleShape]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v2 circuit");
        let name = security.name().as_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(&(shapes.len() as u64).to_le_bytes());
        for shape in shapes {
            for dimension in [shape.d_in(), shape.rank(), shape.d_out()] {
                hasher.update(&(dimension as u64).to_le_bytes());
            }
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
