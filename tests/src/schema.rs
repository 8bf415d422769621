//! What a module offers its clients: public tables, reducers, procedures and the types they are made of. Read from the
//! schema of a published module, and from the generated bindings, so that the two can be compared.
//!
//! Nothing that no client sees is in it: private tables, indexes, sequences, row filters, lifecycle and scheduled reducers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use syn::visit::Visit;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Surface {
    /// By name.
    pub tables: BTreeMap<String, Table>,
    /// By name, with their arguments.
    pub reducers: BTreeMap<String, Vec<Field>>,
    /// By name.
    pub procedures: BTreeMap<String, Procedure>,
    /// The types with a name, by name. Order and names of the fields are what is on the wire.
    pub types: BTreeMap<String, Vec<Field>>,
}

/// A public table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Name of the row's type.
    pub row: String,
    /// Name of the column that is the primary key.
    pub primary_key: Option<String>,
    /// Names of the columns that are unique by themselves.
    pub unique: BTreeSet<String>,
}

/// A procedure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Procedure {
    /// What it takes.
    pub arguments: Vec<Field>,
    /// What it answers with, as a Rust type.
    pub returns: String,
}

/// A column or an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its Rust type, without paths.
    pub r#type: String,
}

/// The reducers that a table calls when its rows are due. A client cannot.
pub fn scheduled(schema: &Value) -> anyhow::Result<BTreeSet<String>> {
    array(&schema["tables"])?
        .iter()
        .filter_map(|table| table["schedule"].get("some"))
        .map(|schedule| text(&schedule["reducer_name"]))
        .collect()
}

impl Surface {
    /// Out of what `GET schema?version=9` answers.
    pub fn of_schema(schema: &Value) -> anyhow::Result<Self> {
        let mut names = BTreeMap::new();
        for named in array(&schema["types"])? {
            let name = named["name"]["name"].as_str().context("a type without a name")?;
            names.insert(
                named["ty"].as_u64().context("a type without a reference")?,
                name.to_owned(),
            );
        }
        let mut surface = Self::default();
        for (at, name) in &names {
            let elements = &schema["typespace"]["types"][*at as usize]["Product"]["elements"];
            let fields = fields(elements, &names).with_context(|| format!("type {name}"))?;
            surface.types.insert(name.clone(), fields);
        }
        for table in array(&schema["tables"])? {
            if table["table_access"].get("Public").is_some() {
                let name = text(&table["name"])?;
                let row = table["product_type_ref"]
                    .as_u64()
                    .and_then(|at| names.get(&at))
                    .context("a table's row has no name")?;
                let columns = &surface.types[row];
                surface.tables.insert(name, of_table(table, row, columns)?);
            }
        }
        let scheduled = scheduled(schema)?;
        for reducer in array(&schema["reducers"])? {
            if reducer["lifecycle"].get("some").is_none() && !scheduled.contains(&text(&reducer["name"])?) {
                surface
                    .reducers
                    .insert(text(&reducer["name"])?, fields(&reducer["params"]["elements"], &names)?);
            }
        }
        for export in array(&schema["misc_exports"])? {
            if let Some(procedure) = export.get("Procedure") {
                let arguments = fields(&procedure["params"]["elements"], &names)?;
                let returns = rust_type(&procedure["return_type"], &names)?;
                surface
                    .procedures
                    .insert(text(&procedure["name"])?, Procedure { arguments, returns });
            }
        }
        surface.keep_reachable_types();
        Ok(surface)
    }

    /// Out of the folder with the generated bindings.
    pub fn of_bindings(folder: &Path) -> anyhow::Result<Self> {
        let mut bindings = Bindings::default();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path)?;
                let file = syn::parse_file(&source).with_context(|| path.display().to_string())?;
                bindings.visit_file(&file);
            }
        }
        let arguments = |name: &str, structs: &BTreeMap<String, Vec<Field>>| {
            structs
                .get(name)
                .cloned()
                .with_context(|| format!("the bindings have no struct {name}"))
        };
        let mut surface = Self::default();
        for (variant, name) in &bindings.reducers {
            surface
                .reducers
                .insert(name.clone(), arguments(&format!("{variant}Args"), &bindings.structs)?);
        }
        for (name, (structure, returns)) in &bindings.procedures {
            let arguments = arguments(structure, &bindings.structs)?;
            surface.procedures.insert(
                name.clone(),
                Procedure {
                    arguments,
                    returns: returns.clone(),
                },
            );
        }
        for field in bindings
            .structs
            .get("DbUpdate")
            .context("the bindings have no struct DbUpdate")?
        {
            let row = field
                .r#type
                .trim_start_matches("TableUpdate<")
                .trim_end_matches('>')
                .to_owned();
            let table = Table {
                primary_key: bindings.primary_keys.get(&field.name).cloned(),
                unique: bindings.unique.get(&row).cloned().unwrap_or_default(),
                row,
            };
            surface.tables.insert(field.name.clone(), table);
        }
        surface.types = bindings.structs;
        surface.keep_reachable_types();
        Ok(surface)
    }

    /// sha256 of the whole, in hex: what `SCHEMA_HASH` of the contract has to be.
    pub fn hash(&self) -> anyhow::Result<String> {
        // Maps are sorted, so the same surface is always the same text.
        Ok(format!(
            "sha256:{}",
            hex::encode(Sha256::digest(serde_json::to_vec(self)?))
        ))
    }

    /// What `other` has differently, a line each; nothing if they are the same.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (self.lines(), other.lines());
        let missing = ours.difference(&theirs).map(|line| format!("- {line}"));
        let extra = theirs.difference(&ours).map(|line| format!("+ {line}"));
        missing.chain(extra).collect()
    }

    fn lines(&self) -> BTreeSet<String> {
        let show = |fields: &[Field]| {
            let fields: Vec<_> = fields
                .iter()
                .map(|field| format!("{}: {}", field.name, field.r#type))
                .collect();
            fields.join(", ")
        };
        let tables = self
            .tables
            .iter()
            .map(|(name, table)| format!("table {name} {table:?}"));
        let reducers = self
            .reducers
            .iter()
            .map(|(name, arguments)| format!("reducer {name}({})", show(arguments)));
        let procedures = self.procedures.iter().map(|(name, procedure)| {
            format!(
                "procedure {name}({}) -> {}",
                show(&procedure.arguments),
                procedure.returns
            )
        });
        let types = self
            .types
            .iter()
            .map(|(name, fields)| format!("type {name} {{ {} }}", show(fields)));
        tables.chain(reducers).chain(procedures).chain(types).collect()
    }

    /// Types of private tables are generated and listed, too, though no client ever meets one.
    fn keep_reachable_types(&mut self) {
        let mut reached = BTreeSet::new();
        let mut open: Vec<String> = self.tables.values().map(|table| table.row.clone()).collect();
        let arguments = self
            .reducers
            .values()
            .chain(self.procedures.values().map(|procedure| &procedure.arguments));
        open.extend(arguments.flatten().flat_map(|field| words(&field.r#type)));
        open.extend(self.procedures.values().flat_map(|procedure| words(&procedure.returns)));
        while let Some(name) = open.pop() {
            if let Some(fields) = self.types.get(&name)
                && reached.insert(name)
            {
                open.extend(fields.iter().flat_map(|field| words(&field.r#type)));
            }
        }
        self.types.retain(|name, _| reached.contains(name));
    }
}

fn words(r#type: &str) -> Vec<String> {
    r#type
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn array(value: &Value) -> anyhow::Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("expected a list, found {value}"))
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value
        .as_str()
        .with_context(|| format!("expected a name, found {value}"))?
        .to_owned())
}

fn of_table(table: &Value, row: &str, columns: &[Field]) -> anyhow::Result<Table> {
    let named = |at: &Value| {
        let at = at.as_u64().and_then(|at| columns.get(at as usize));
        at.map(|column| column.name.clone())
            .context("a key of a column that is not there")
    };
    let mut unique = BTreeSet::new();
    for constraint in array(&table["constraints"])? {
        if let [column] = array(&constraint["data"]["Unique"]["columns"])?.as_slice() {
            unique.insert(named(column)?);
        }
    }
    let primary_key = array(&table["primary_key"])?.first().map(named).transpose()?;
    Ok(Table {
        row: row.to_owned(),
        primary_key,
        unique,
    })
}

fn fields(elements: &Value, names: &BTreeMap<u64, String>) -> anyhow::Result<Vec<Field>> {
    let field = |element: &Value| {
        let name = text(&element["name"]["some"])?;
        Ok(Field {
            name,
            r#type: rust_type(&element["algebraic_type"], names)?,
        })
    };
    array(elements)?.iter().map(field).collect()
}

/// What the generator makes of a type of the schema.
fn rust_type(r#type: &Value, names: &BTreeMap<u64, String>) -> anyhow::Result<String> {
    let unknown = || format!("a type that is not known here: {type}");
    let (tag, body) = r#type
        .as_object()
        .and_then(|object| object.iter().next())
        .with_context(unknown)?;
    let parts = |list: &str| -> anyhow::Result<Vec<(String, &Value)>> {
        let part = |part: &'_ Value| text(&part["name"]["some"]);
        array(&body[list])?
            .iter()
            .map(|found| Ok((part(found)?, &found["algebraic_type"])))
            .collect()
    };
    Ok(match tag.as_str() {
        "Bool" => "bool".to_owned(),
        "String" => "String".to_owned(),
        "U8" | "U16" | "U32" | "U64" | "U128" | "U256" | "I8" | "I16" | "I32" | "I64" | "I128" | "I256" | "F32"
        | "F64" => tag.to_lowercase(),
        "Array" => format!("Vec<{}>", rust_type(body, names)?),
        "Ref" => body
            .as_u64()
            .and_then(|at| names.get(&at))
            .with_context(unknown)?
            .clone(),
        "Product" => match parts("elements")?
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()[..]
        {
            [] => "()".to_owned(),
            ["__identity__"] => "Identity".to_owned(),
            ["__connection_id__"] => "ConnectionId".to_owned(),
            ["__timestamp_micros_since_unix_epoch__"] => "Timestamp".to_owned(),
            ["__time_duration_micros__"] => "TimeDuration".to_owned(),
            ["__uuid__"] => "Uuid".to_owned(),
            _ => anyhow::bail!(unknown()),
        },
        "Sum" => match &parts("variants")?[..] {
            [(some, inner), (none, _)] if some == "some" && none == "none" => {
                format!("Option<{}>", rust_type(inner, names)?)
            }
            [(ok, good), (err, bad)] if ok == "ok" && err == "err" => {
                format!("Result<{}, {}>", rust_type(good, names)?, rust_type(bad, names)?)
            }
            [(interval, _), (time, _)] if interval == "Interval" && time == "Time" => "ScheduleAt".to_owned(),
            _ => anyhow::bail!(unknown()),
        },
        _ => anyhow::bail!(unknown()),
    })
}

/// What is found in the generated sources.
#[derive(Default)]
struct Bindings {
    structs: BTreeMap<String, Vec<Field>>,
    /// Variant of the enum `Reducer` → name of the reducer.
    reducers: BTreeMap<String, String>,
    /// Name of the procedure → struct of its arguments, and what it returns.
    procedures: BTreeMap<String, (String, String)>,
    /// Table → column.
    primary_keys: BTreeMap<String, String>,
    /// Row type → columns.
    unique: BTreeMap<String, BTreeSet<String>>,
    row: Option<String>,
}

impl Visit<'_> for Bindings {
    fn visit_item_struct(&mut self, item: &syn::ItemStruct) {
        if let syn::Fields::Named(fields) = &item.fields {
            let field = |field: &syn::Field| Field {
                name: field.ident.as_ref().map(ToString::to_string).unwrap_or_default(),
                r#type: shown(&field.ty),
            };
            self.structs
                .insert(item.ident.to_string(), fields.named.iter().map(field).collect());
        }
    }

    fn visit_arm(&mut self, arm: &syn::Arm) {
        if let (syn::Pat::Struct(pattern), Some(name)) = (&arm.pat, string(&arm.body))
            && pattern
                .path
                .segments
                .first()
                .is_some_and(|segment| segment.ident == "Reducer")
            && let Some(variant) = pattern.path.segments.last()
        {
            self.reducers.insert(variant.ident.to_string(), name);
        }
        syn::visit::visit_arm(self, arm);
    }

    fn visit_expr_method_call(&mut self, call: &syn::ExprMethodCall) {
        let generics: Vec<String> = call
            .turbofish
            .iter()
            .flat_map(|found| found.args.iter().map(generic))
            .collect();
        let first = call.args.first();
        match call.method.to_string().as_str() {
            // Stands before the constraints of its table.
            "get_or_make_table" => self.row = generics.first().cloned(),
            "add_unique_constraint" => {
                if let (Some(row), Some(column)) = (&self.row, first.and_then(string)) {
                    self.unique.entry(row.clone()).or_default().insert(column);
                }
            }
            "with_updates_by_pk" => {
                if let (syn::Expr::MethodCall(table), Some(column)) = (&*call.receiver, first.and_then(closure_field))
                    && let Some(table) = table.args.first().and_then(string)
                {
                    self.primary_keys.insert(table, column);
                }
            }
            "invoke_procedure_with_callback" => {
                if let (Some(name), Some(syn::Expr::Struct(arguments)), [_, returns]) =
                    (first.and_then(string), call.args.get(1), &generics[..])
                    && let Some(structure) = arguments.path.segments.last()
                {
                    self.procedures
                        .insert(name, (structure.ident.to_string(), returns.clone()));
                }
            }
            _ => {}
        }
        syn::visit::visit_expr_method_call(self, call);
    }
}

/// A type without the paths before its names.
fn shown(r#type: &syn::Type) -> String {
    match r#type {
        syn::Type::Path(path) => path.path.segments.last().map_or_else(String::new, |segment| {
            let name = segment.ident.to_string();
            match &segment.arguments {
                syn::PathArguments::AngleBracketed(found) => {
                    let inner: Vec<_> = found.args.iter().map(generic).collect();
                    format!("{name}<{}>", inner.join(", "))
                }
                syn::PathArguments::None | syn::PathArguments::Parenthesized(_) => name,
            }
        }),
        syn::Type::Tuple(tuple) if tuple.elems.is_empty() => "()".to_owned(),
        _ => "?".to_owned(),
    }
}

fn generic(argument: &syn::GenericArgument) -> String {
    match argument {
        syn::GenericArgument::Type(r#type) => shown(r#type),
        _ => String::new(),
    }
}

fn string(expression: &syn::Expr) -> Option<String> {
    match expression {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

/// `name` of `|row| &row.name`
fn closure_field(expression: &syn::Expr) -> Option<String> {
    let syn::Expr::Closure(closure) = expression else {
        return None;
    };
    let syn::Expr::Reference(reference) = &*closure.body else {
        return None;
    };
    let syn::Expr::Field(field) = &*reference.expr else {
        return None;
    };
    match &field.member {
        syn::Member::Named(name) => Some(name.to_string()),
        syn::Member::Unnamed(_) => None,
    }
}
