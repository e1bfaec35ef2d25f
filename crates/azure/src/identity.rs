//! Cloud metadata and tokens: what clients ask before they ask for resources. Not here: authorization;
//! any token is good, so that those that clients keep on disk outlive the lab.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use vnet::{fault::Fault, model::Timestamp};

use crate::{
    answer::{Answer, Reply},
    call::{Call, Form, parse_form},
};

/// The lab's only tenant.
pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";
/// The subscription that clients are offered; any other GUID is good in a path.
pub const DEFAULT_SUBSCRIPTION: &str = "16e85b36-5c9d-48cc-a45d-c672a4393c36";

const OBJECT: &str = "22222222-2222-2222-2222-222222222222";
const APPLICATION: &str = "33333333-3333-3333-3333-333333333333";
const LIFETIME_SECONDS: i64 = 28_799;

/// Answers a request for metadata, discovery or a token; `None` when it is for something else.
pub(crate) fn answer(call: &Call<'_>) -> Option<Answer> {
    let lower = call.path.lower();
    let reply = match (&call.method, lower.as_slice()) {
        (&Method::GET, ["metadata", "endpoints"]) => Ok(metadata(call)),
        (&Method::GET, [.., ".well-known", "openid-configuration"]) => Ok(discovery(call)),
        (&Method::GET, [.., "discovery", "instance"]) => Ok(instance(call)),
        (&Method::GET, [.., "discovery", "keys"]) => Ok(Reply::ok(json!({ "keys": [] }))),
        (&Method::POST, [.., "oauth2", "token"] | [.., "oauth2", "v2.0", "token"]) => {
            Ok(token(call))
        }
        (&Method::POST, [.., "oauth2", "devicecode"] | [.., "oauth2", "v2.0", "devicecode"]) => {
            Ok(device_code(call))
        }
        (&Method::GET, ["tenants"]) => Ok(tenants()),
        (&Method::GET, ["v1.0" | "beta", "serviceprincipals"]) => Ok(service_principals(call)),
        (&Method::GET, ["v1.0" | "beta", "serviceprincipals", id]) => {
            Ok(Reply::ok(service_principal(id)))
        }
        (_, ["v1.0" | "beta", ..]) => Err(Fault::new(
            404,
            "Request_ResourceNotFound",
            "This lab has no directory; only service principals can be looked up.",
        )),
        _ => {
            let path = format!("/{}", lower.join("/"));
            return managed_identity(&path, &call.query, (call.door().clock)()).map(Ok);
        }
    };
    Some(reply)
}

/// The document that `az cloud register` and Terraform begin with.
fn metadata(call: &Call<'_>) -> Reply {
    let base = &call.base;
    let login = format!("{base}/adfs");
    let audience = format!("{base}/");
    if call.api_version() == "2015-01-01" {
        return Reply::ok(json!({
            "galleryEndpoint": format!("{base}/gallery"),
            "graphEndpoint": audience,
            "portalEndpoint": format!("{base}/portal"),
            "authentication": { "loginEndpoint": login, "audiences": [audience] },
        }));
    }
    let cloud = json!({
        "name": "aksnet",
        "portal": format!("{base}/portal"),
        "resourceManager": base,
        "authentication": {
            "loginEndpoint": login,
            "audiences": [audience, "https://management.core.windows.net/"],
            "tenant": "common",
            "identityProvider": "AAD",
        },
        "graph": base,
        "graphAudience": audience,
        "microsoftGraphResourceId": audience,
        "gallery": format!("{base}/gallery"),
        "batch": base,
        "media": base,
        "sqlManagement": base,
        "vmImageAliasDoc": format!("{base}/aliases.json"),
        "activeDirectoryDataLake": base,
        "suffixes": {
            "storage": "core.aksnet.test",
            "keyVaultDns": "vault.aksnet.test",
            "acrLoginServer": "azurecr.aksnet.test",
            "sqlServerHostname": "database.aksnet.test",
        },
    });
    // Only one version answers a single cloud; `ARM_CLOUD_METADATA_URL` wants a list.
    Reply::ok(if call.api_version() == "2022-09-01" { cloud } else { json!([cloud]) })
}

/// `OpenID` Connect discovery, for an authority below `/adfs` and for one named after a tenant.
fn discovery(call: &Call<'_>) -> Reply {
    let base = &call.base;
    let lower = call.path.lower();
    let is_adfs = lower.first() == Some(&"adfs");
    let (issuer, oauth) = if is_adfs && lower.len() == 3 {
        (format!("{base}/adfs"), format!("{base}/adfs/oauth2"))
    } else if is_adfs {
        // az takes the tenant's id from the fourth part of the issuer.
        (format!("{base}/{TENANT}/v2.0"), format!("{base}/adfs/oauth2"))
    } else {
        (format!("{base}/{TENANT}/v2.0"), format!("{base}/{TENANT}/oauth2/v2.0"))
    };
    Reply::ok(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{oauth}/authorize"),
        "token_endpoint": format!("{oauth}/token"),
        "device_authorization_endpoint": format!("{oauth}/devicecode"),
        "jwks_uri": format!("{base}/adfs/discovery/keys"),
        "response_types_supported": ["code", "id_token", "code id_token", "token id_token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
}

fn instance(call: &Call<'_>) -> Reply {
    Reply::ok(json!({
        "tenant_discovery_endpoint": format!("{}/{TENANT}/v2.0/.well-known/openid-configuration", call.base),
        "api-version": "1.1",
        "metadata": [],
    }))
}

/// A token for any grant, unsigned: no client checks the signature of an access token.
fn token(call: &Call<'_>) -> Reply {
    let form = parse_form(&String::from_utf8_lossy(call.body));
    let field = |key: &str| form.get(key).map_or("", String::as_str);
    let now = (call.door().clock)();
    let audience = match field("resource") {
        "" => field("scope").trim_end_matches(".default").trim_end_matches('/'),
        resource => resource,
    };
    let user = match field("username") {
        "" => "user@aksnet.test",
        user => user,
    };
    let client = match field("client_id") {
        "" => APPLICATION,
        client => client,
    };
    let mut answer = json!({
        "token_type": "Bearer",
        "expires_in": LIFETIME_SECONDS,
        "ext_expires_in": LIFETIME_SECONDS,
        "access_token": jwt(&call.base, audience, client, None, now),
    });
    if field("grant_type") != "client_credentials" {
        let info = json!({ "uid": OBJECT, "utid": TENANT });
        answer["scope"] = json!(field("scope"));
        answer["id_token"] = json!(jwt(&call.base, client, client, Some(user), now));
        answer["refresh_token"] = json!("aksnet");
        answer["client_info"] = json!(URL_SAFE_NO_PAD.encode(info.to_string()));
    }
    Reply::ok(answer)
}

fn jwt(base: &str, audience: &str, client: &str, user: Option<&str>, now: Timestamp) -> String {
    let issued = now.0 / 1000;
    let mut claims = json!({
        "iss": format!("{base}/{TENANT}/"), "aud": audience,
        "iat": issued, "nbf": issued, "exp": issued + LIFETIME_SECONDS,
        "tid": TENANT, "oid": OBJECT, "sub": OBJECT, "appid": client, "idtyp": "app", "ver": "1.0",
    });
    if let Some(user) = user {
        claims["preferred_username"] = json!(user);
        claims["upn"] = json!(user);
        claims["name"] = json!(user);
        claims["idtyp"] = json!("user");
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({ "typ": "JWT", "alg": "none" });
    format!("{}.{}.{}", part(&header), part(&claims), URL_SAFE_NO_PAD.encode("unsigned"))
}

fn device_code(call: &Call<'_>) -> Reply {
    Reply::ok(json!({
        "user_code": "AKSNET",
        "device_code": "aksnet",
        "verification_uri": format!("{}/device", call.base),
        "expires_in": 900,
        "interval": 1,
        "message": "This lab asks for nothing: signing in ends by itself.",
    }))
}

fn tenants() -> Reply {
    Reply::list(vec![json!({
        "id": format!("/tenants/{TENANT}"),
        "tenantId": TENANT,
        "displayName": "aksnet",
        "defaultDomain": "aksnet.test",
        "tenantType": "AAD",
        "tenantCategory": "Home",
        "domains": ["aksnet.test"],
    })])
}

/// Microsoft Graph, as far as `az aks create --service-principal` asks it.
fn service_principals(call: &Call<'_>) -> Reply {
    let filter = call.query.get("$filter").map_or("", String::as_str);
    let name = filter.split('\'').nth(1).unwrap_or(APPLICATION);
    Reply::list(vec![service_principal(name)])
}

fn service_principal(name: &str) -> Value {
    json!({ "id": OBJECT, "appId": name, "displayName": "aksnet", "servicePrincipalNames": [name],
        "servicePrincipalType": "Application" })
}

/// The metadata service's token route, virtual machine and App Service style.
pub(crate) fn managed_identity(path: &str, query: &Form, now: Timestamp) -> Option<Reply> {
    if !matches!(path.trim_end_matches('/'), "/metadata/identity/oauth2/token" | "/msi/token") {
        return None;
    }
    let Some(resource) = query.get("resource") else {
        let body = json!({ "error": "invalid_request", "error_description": "Required query variable 'resource' is missing" });
        return Some(Reply::with_status(StatusCode::BAD_REQUEST, body));
    };
    Some(Reply::ok(json!({
        "token_type": "Bearer",
        "access_token": jwt(resource.trim_end_matches('/'), resource, APPLICATION, None, now),
        "client_id": APPLICATION,
        "resource": resource,
        "expires_in": LIFETIME_SECONDS.to_string(),
        "ext_expires_in": LIFETIME_SECONDS.to_string(),
        "expires_on": (now.0 / 1000 + LIFETIME_SECONDS).to_string(),
        "not_before": (now.0 / 1000).to_string(),
    })))
}
