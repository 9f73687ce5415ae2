//! What messages look like, as their own descriptions say it: every message and
//! every gRPC method of the project and of etcd.

use std::{collections::BTreeMap, sync::LazyLock};

use metastore::proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// All of them, by name.
#[derive(Debug, Default)]
pub struct Shapes {
    messages: BTreeMap<String, Vec<Field>>,
    enums: BTreeMap<String, Vec<(String, i32)>>,
    /// The methods of all services.
    pub methods: Vec<Method>,
}

/// A field of a message.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name in the `.proto`.
    pub name: String,
    /// Its number.
    pub number: u32,
    /// What it holds.
    pub kind: Kind,
    /// Whether it may be there many times.
    pub repeated: bool,
    /// Fields with the same number here exclude each other.
    pub oneof: Option<i32>,
}

impl Field {
    /// Whether proto3 leaves it out when it is zero or empty.
    pub fn is_omitted_when_zero(&self) -> bool {
        !self.repeated && self.oneof.is_none()
    }
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A truth value.
    Bool,
    /// A number of 32 bits, with or without sign.
    Narrow,
    /// A number of 64 bits, with or without sign.
    Wide,
    /// One of the numbers that an enumeration names.
    Enum(String),
    /// Text.
    Text,
    /// Bytes.
    Bytes,
    /// Another message.
    Message(String),
}

/// A method of a service.
#[derive(Debug, Clone)]
pub struct Method {
    /// `/package.Service/Method`
    pub path: String,
    /// The name of the message that asks.
    pub input: String,
}

/// The descriptions, read once.
pub static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("compiled into the program");
    let mut shapes = Shapes::default();
    for file in &set.file {
        let package = file.package();
        file.message_type.iter().for_each(|message| shapes.take(package, message));
        file.enum_type.iter().for_each(|choices| shapes.take_enum(package, choices));
        for service in &file.service {
            for method in &service.method {
                shapes.methods.push(Method {
                    path: format!("/{package}.{}/{}", service.name(), method.name()),
                    input: method.input_type().trim_start_matches('.').to_owned(),
                });
            }
        }
    }
    shapes
});

impl Shapes {
    /// The fields of a message.
    ///
    /// # Panics
    /// When there is no such message: the name is a mistake in this program.
    pub fn fields(&self, message: &str) -> &[Field] {
        self.messages.get(message).unwrap_or_else(|| panic!("there is no message {message}"))
    }

    /// The names and numbers of an enumeration.
    ///
    /// # Panics
    /// As [`Shapes::fields`].
    pub fn choices(&self, name: &str) -> &[(String, i32)] {
        self.enums.get(name).unwrap_or_else(|| panic!("there is no enumeration {name}"))
    }

    fn take(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        message.nested_type.iter().for_each(|nested| self.take(&name, nested));
        message.enum_type.iter().for_each(|choices| self.take_enum(&name, choices));
        self.messages.insert(name, message.field.iter().map(field).collect());
    }

    fn take_enum(&mut self, scope: &str, choices: &EnumDescriptorProto) {
        let values = choices.value.iter().map(|value| (value.name().to_owned(), value.number()));
        self.enums.insert(format!("{scope}.{}", choices.name()), values.collect());
    }
}

fn field(field: &FieldDescriptorProto) -> Field {
    let named = || field.type_name().trim_start_matches('.').to_owned();
    let kind = match field.r#type() {
        Type::Bool => Kind::Bool,
        Type::Int32 | Type::Uint32 => Kind::Narrow,
        Type::Int64 | Type::Uint64 => Kind::Wide,
        Type::Enum => Kind::Enum(named()),
        Type::String => Kind::Text,
        Type::Bytes => Kind::Bytes,
        Type::Message => Kind::Message(named()),
        other => panic!("no message has fields of type {other:?} yet: {}", field.name()),
    };
    Field {
        name: field.name().to_owned(),
        number: field.number().unsigned_abs(),
        kind,
        repeated: field.label() == Label::Repeated,
        oneof: field.oneof_index,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_enumerations_and_methods_are_known() {
        let fields = SHAPES.fields("etcdserverpb.TxnRequest");
        assert_eq!(fields.len(), 3);
        assert!(fields[0].repeated);
        assert_eq!(fields[0].kind, Kind::Message("etcdserverpb.Compare".to_owned()));
        assert!(SHAPES.fields("metastore.v1.Command").iter().all(|it| it.name != "nothing"));
        assert_eq!(SHAPES.choices("etcdserverpb.AlarmType").len(), 3);
        assert!(SHAPES.methods.len() > 50, "{}", SHAPES.methods.len());
        assert!(SHAPES.methods.iter().any(|it| it.path == "/etcdserverpb.KV/Range"));
    }
}
