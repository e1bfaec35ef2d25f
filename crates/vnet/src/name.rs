//! Names of things, as Azure Resource Manager has them.

use std::{cmp::Ordering, fmt, hash, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A name or an id that keeps the caller's spelling for display and compares without regard to
/// ASCII case, as Azure Resource Manager does.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Name {
    text: Arc<str>,
    key: Arc<str>,
}

impl Name {
    /// A name with this spelling.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), key: text.to_ascii_lowercase().into() }
    }

    /// The spelling that was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The lower-case form, for equality, keys and file names.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.text.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.text)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for Name {}
impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}
impl hash::Hash for Name {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

/// The id of an Azure resource:
/// `/subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME[/TYPE/NAME…]`, or the first two
/// or four of these segments for a subscription or a resource group.
///
/// Compares without regard to ASCII case and keeps the caller's spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArmId(Name);

/// A text that is not the id of an Azure resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a resource id of the form /subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME"
)]
pub struct ArmIdError {
    /// What was given.
    pub text: String,
}

impl ArmId {
    /// The id of a resource group.
    #[must_use]
    pub fn group(subscription: &str, group: &str) -> Self {
        Self(Name::new(&format!("/subscriptions/{subscription}/resourceGroups/{group}")))
    }

    /// The id of a resource in the same subscription and group as this one.
    /// `kind` is namespace and type, `Microsoft.Network/virtualNetworks`.
    #[must_use]
    pub fn sibling(&self, kind: &str, name: &str) -> Self {
        Self(Name::new(&format!("{}/providers/{kind}/{name}", self.resource_group_id())))
    }

    /// The id of a child: `…/subnets/NAME`.
    #[must_use]
    pub fn child(&self, kind: &str, name: &str) -> Self {
        Self(Name::new(&format!("{self}/{kind}/{name}")))
    }

    /// The spelling that was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The lower-case form.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.key()
    }

    fn segment(&self, index: usize) -> Option<&str> {
        self.as_str().split('/').nth(index + 1)
    }

    /// The subscription's id.
    #[must_use]
    pub fn subscription(&self) -> &str {
        self.segment(1).unwrap_or_default()
    }

    /// The resource group's name; empty for the id of a subscription.
    #[must_use]
    pub fn resource_group(&self) -> &str {
        self.segment(3).unwrap_or_default()
    }

    /// The id of the resource group that this resource is in.
    #[must_use]
    pub fn resource_group_id(&self) -> Self {
        let text: Vec<&str> = self.as_str().split('/').take(5).collect();
        Self(Name::new(&text.join("/")))
    }

    /// The last segment.
    #[must_use]
    pub fn name(&self) -> &str {
        self.as_str().rsplit('/').next().unwrap_or_default()
    }

    /// The id without its last type and name: the virtual network of a subnet. `None` for a top-level resource.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let segments: Vec<&str> = self.as_str().split('/').collect();
        // "", subscriptions, S, resourceGroups, G, providers, NS, TYPE, NAME, TYPE, NAME
        (segments.len() > 9).then(|| Self(Name::new(&segments[..segments.len() - 2].join("/"))))
    }

    /// Namespace and types without names, `Microsoft.Network/virtualNetworks/subnets`; empty for a group.
    #[must_use]
    pub fn kind(&self) -> String {
        let mut segments = self.as_str().split('/').skip(6);
        let mut kind = segments.next().unwrap_or_default().to_owned();
        while let Some(part) = segments.next() {
            kind.push('/');
            kind.push_str(part);
            segments.next();
        }
        kind
    }

    /// Whether [`kind`](Self::kind) is this one, without regard to case.
    #[must_use]
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind().eq_ignore_ascii_case(kind)
    }
}

impl FromStr for ArmId {
    type Err = ArmIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ArmIdError { text: text.to_owned() };
        let segments: Vec<&str> = text.split('/').collect();
        let fits = match segments.as_slice() {
            ["", a, rest @ ..] if a.eq_ignore_ascii_case("subscriptions") => match rest {
                [_] => true,
                [_, b, _] => b.eq_ignore_ascii_case("resourceGroups"),
                [_, b, _, c, _, types @ ..] => {
                    b.eq_ignore_ascii_case("resourceGroups")
                        && c.eq_ignore_ascii_case("providers")
                        && !types.is_empty()
                        && types.len().is_multiple_of(2)
                }
                _ => false,
            },
            _ => false,
        };
        if !fits || segments[1..].iter().any(|segment| segment.is_empty()) {
            return Err(wrong());
        }
        Ok(Self(Name::new(text)))
    }
}

impl TryFrom<String> for ArmId {
    type Error = ArmIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ArmId> for String {
    fn from(id: ArmId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
