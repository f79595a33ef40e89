//! A table of columns, and how it becomes a Parquet file.

use std::{io::Write, sync::Arc};

use parquet::{
    basic::{Compression, IntType, LogicalType, Repetition, Type as PhysicalType},
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type},
    errors::Result,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};

/// A named table. Its columns are equally long.
pub struct Table {
    /// Its name: `NAME.parquet` is the file.
    pub name: &'static str,
    columns: Vec<Column>,
}

struct Column {
    name: &'static str,
    values: Values,
}

/// Absent values are null. Every column may have some, so that a table's schema is always the same.
enum Values {
    Number(Vec<Option<i64>>),
    Unsigned(Vec<Option<i64>>),
    Real(Vec<Option<f64>>),
    Flag(Vec<Option<bool>>),
    Text(Vec<Option<ByteArray>>),
}

/// What a column of whole numbers is made from.
pub(super) trait Number {
    fn number(self) -> Option<i64>;
}

impl Number for i64 {
    fn number(self) -> Option<i64> {
        Some(self)
    }
}

impl Number for u64 {
    fn number(self) -> Option<i64> {
        Some(i64::try_from(self).unwrap_or(i64::MAX))
    }
}

impl Number for u32 {
    fn number(self) -> Option<i64> {
        Some(self.into())
    }
}

impl Number for usize {
    fn number(self) -> Option<i64> {
        (self as u64).number()
    }
}

impl<N: Number> Number for Option<N> {
    fn number(self) -> Option<i64> {
        self.and_then(N::number)
    }
}

impl Table {
    /// An empty one.
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            columns: Vec::new(),
        }
    }

    /// Adds a column of counts, bytes or the like; what 63 bits cannot hold is the most they can.
    pub(super) fn number<N: Number>(
        self,
        name: &'static str,
        values: impl Iterator<Item = N>,
    ) -> Self {
        let values = values.map(Number::number).collect();
        self.column(name, Values::Number(values))
    }

    /// Adds a column of addresses or offsets: 64 bits without a sign.
    pub(super) fn unsigned<T>(self, name: &'static str, values: impl Iterator<Item = T>) -> Self
    where
        T: Into<Option<u64>>,
    {
        let values = values.map(|value| value.into().map(u64::cast_signed));
        self.column(name, Values::Unsigned(values.collect()))
    }

    /// Adds a column of seconds, rates or shares.
    pub(super) fn real<T>(self, name: &'static str, values: impl Iterator<Item = T>) -> Self
    where
        T: Into<Option<f64>>,
    {
        self.column(name, Values::Real(values.map(Into::into).collect()))
    }

    /// Adds a column of truth values.
    pub(super) fn flag(self, name: &'static str, values: impl Iterator<Item = bool>) -> Self {
        self.column(name, Values::Flag(values.map(Some).collect()))
    }

    /// Adds a column of texts.
    pub(super) fn text<T>(self, name: &'static str, values: impl Iterator<Item = T>) -> Self
    where
        T: Into<Option<String>>,
    {
        let text = |value: String| ByteArray::from(value.into_bytes());
        let values = values.map(|value| value.into().map(text)).collect();
        self.column(name, Values::Text(values))
    }

    fn column(mut self, name: &'static str, values: Values) -> Self {
        self.columns.push(Column { name, values });
        self
    }

    /// Writes it as a file with one row group, and `report` with it for what is in no table.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn write<W: Write + Send>(&self, report: &str, out: W) -> Result<()> {
        let fields = self
            .columns
            .iter()
            .map(|column| column.field().map(Arc::new));
        let schema = Type::group_type_builder(self.name)
            .with_fields(fields.collect::<Result<_>>()?)
            .build()?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(Default::default()))
            .set_created_by(concat!("leaktrace version ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![KeyValue::new(
                "leaktrace.report".to_owned(),
                report.to_owned(),
            )]))
            .build();
        let mut writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))?;
        let mut group = writer.next_row_group()?;
        let mut columns = self.columns.iter();
        while let (Some(mut writer), Some(column)) = (group.next_column()?, columns.next()) {
            column.write(&mut writer)?;
            writer.close()?;
        }
        group.close()?;
        writer.close()?;
        Ok(())
    }
}

impl Column {
    fn field(&self) -> Result<Type> {
        let (physical, logical) = match &self.values {
            Values::Number(_) => (PhysicalType::INT64, None),
            Values::Unsigned(_) => {
                let unsigned = IntType {
                    bit_width: 64,
                    is_signed: false,
                };
                (PhysicalType::INT64, Some(LogicalType::Integer(unsigned)))
            }
            Values::Real(_) => (PhysicalType::DOUBLE, None),
            Values::Flag(_) => (PhysicalType::BOOLEAN, None),
            Values::Text(_) => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
        };
        Type::primitive_type_builder(self.name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical)
            .build()
    }

    fn write(&self, writer: &mut SerializedColumnWriter) -> Result<()> {
        match &self.values {
            Values::Number(values) | Values::Unsigned(values) => {
                write_values::<Int64Type>(writer, values)
            }
            Values::Real(values) => write_values::<DoubleType>(writer, values),
            Values::Flag(values) => write_values::<BoolType>(writer, values),
            Values::Text(values) => write_values::<ByteArrayType>(writer, values),
        }
    }
}

fn write_values<D: DataType>(
    writer: &mut SerializedColumnWriter,
    values: &[Option<D::T>],
) -> Result<()> {
    let there: Vec<_> = values.iter().flatten().cloned().collect();
    let levels: Vec<_> = values
        .iter()
        .map(|value| i16::from(value.is_some()))
        .collect();
    writer
        .typed::<D>()
        .write_batch(&there, Some(&levels), None)?;
    Ok(())
}
