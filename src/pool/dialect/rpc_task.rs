//! A task of a pool of JSON-RPC servers.

use serde::{Deserialize, de::Error as _};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A method, and what is sent before and after it. Read from a pair, or from an object with these fields.
#[derive(Debug, Deserialize)]
pub(crate) struct RpcTask<'a> {
    #[serde(borrow)]
    pub(crate) method: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) params: &'a RawValue,
    #[serde(borrow, default)]
    pub(crate) before: Vec<(Cow<'a, str>, &'a RawValue)>,
    #[serde(borrow, default)]
    pub(crate) after: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl RpcTask<'_> {
    /// JSON-RPC allows objects and arrays only; `null` is none.
    pub(crate) fn check(&self) -> serde_json::Result<()> {
        let mut all = self.before.iter().chain(&self.after).map(|(_, params)| params).chain([&self.params]);
        if all.all(|params| params.get().starts_with(['{', '[']) || params.get() == "null") {
            Ok(())
        } else {
            Err(serde_json::Error::custom("the parameters of a method are an array or an object"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn p02_task_is_a_pair_or_an_object() {
        let parsed = |text| serde_json::from_str::<RpcTask<'_>>(text);
        let pair = parsed(r#"["add",[1,2]]"#).unwrap();
        assert_eq!((&*pair.method, pair.params.get(), pair.before.len()), ("add", "[1,2]", 0));
        let text = r#"{"before":[["open",{"uri":"a"}]],"method":"symbols","params":{},"after":[["close",null]]}"#;
        let object = parsed(text).unwrap();
        assert_eq!((object.before[0].1.get(), &*object.after[0].0), (r#"{"uri":"a"}"#, "close"));
        object.check().unwrap();
        parsed(r#"["add",5]"#).unwrap().check().unwrap_err();
        for wrong in ["[]", r#"["add"]"#, r#"{"method":"add"}"#, "5", "null"] {
            parsed(wrong).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn p02_any_json_is_a_task_or_an_error(text in r#"[\[\{]("[a-z]{1,6}"|[:,\[\]\{\}0-9]){0,12}"#) {
            if let Ok(task) = serde_json::from_str::<RpcTask<'_>>(&text) {
                drop(task.check());
            }
        }
    }
}
