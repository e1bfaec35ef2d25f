//! The files of flow logs: Azure's JSON, at the path that Azure's blobs have. Not here: what is in them.
//!
//! Source: Azure documentation, "Virtual network flow logs" and "Read flow logs".

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use k8s_openapi::jiff;
use linux::netfilter::conntrack::Tuple;
use serde_json::{Value, json};
use uuid::Uuid;
use vnet::{
    addr::Mac,
    model::{Direction, Timestamp, Vnet},
};

/// How a file ends, so that it is whole JSON at any time.
const TAIL: &[u8] = b"]}";

/// One line of a flow log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The NIC's.
    pub(super) mac: Mac,
    /// The GUID of the security group whose rule decided.
    pub(super) group: Option<Uuid>,
    pub(super) rule: String,
    pub(super) tuple: Tuple,
    pub(super) direction: Direction,
    pub(super) time: Timestamp,
    /// `B`egun, `C`ontinuing, `E`nded, `D`enied.
    pub(super) state: char,
    /// Packets and bytes sent, packets and bytes received, since the flow was told of last.
    pub(super) counts: [u64; 4],
}

impl Entry {
    /// The same flow, told of later.
    pub(super) fn told(&self, time: Timestamp, state: char, counts: [u64; 4]) -> Self {
        Self { time, state, counts, ..self.clone() }
    }

    /// The flow tuple: time in milliseconds, addresses, ports, protocol, direction, state, encryption (none), counts.
    fn text(&self) -> String {
        let Tuple { source, destination, protocol, source_port, destination_port } = self.tuple;
        let direction = match self.direction {
            Direction::Inbound => 'I',
            Direction::Outbound => 'O',
        };
        let [sent, sent_bytes, received, received_bytes] = self.counts;
        format!(
            "{},{source},{destination},{source_port},{destination_port},{protocol},{direction},{},NX,{sent},{sent_bytes},{received},{received_bytes}",
            self.time.0, self.state
        )
    }
}

/// Flow logs below one folder.
pub(super) struct Files(PathBuf);

impl Files {
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Writes what was seen in a virtual network: one record for each NIC, in the hour's file of that NIC.
    pub(super) fn write(&self, vnet: &Vnet, entries: Vec<Entry>, now: Timestamp) -> io::Result<()> {
        let mut by_nic: BTreeMap<Mac, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            by_nic.entry(entry.mac).or_default().push(entry);
        }
        for (mac, entries) in by_nic {
            append(&self.0.join(path(vnet, mac, now)), &record(vnet, mac, &entries, now))?;
        }
        Ok(())
    }
}

/// Names of a flow log have no resource behind them here: a virtual network's is called after it.
fn log_name(vnet: &Vnet) -> String {
    vnet.meta.id.name().to_ascii_uppercase()
}

fn subscription(vnet: &Vnet) -> String {
    vnet.meta.id.as_str().split('/').nth(2).unwrap_or_default().to_ascii_uppercase()
}

fn utc(time: Timestamp) -> jiff::civil::DateTime {
    let time = jiff::Timestamp::from_millisecond(time.0).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::UTC).datetime()
}

fn mac_text(mac: Mac) -> String {
    mac.to_string().replace(':', "").to_ascii_uppercase()
}

fn path(vnet: &Vnet, mac: Mac, now: Timestamp) -> PathBuf {
    let time = utc(now);
    let (subscription, name) = (subscription(vnet), log_name(vnet));
    let location = vnet.meta.location.to_ascii_uppercase();
    PathBuf::from(format!(
        "insights-logs-flowlogflowevent/flowLogResourceID=/{subscription}_NETWORKWATCHERRG/NETWORKWATCHER_{location}_{name}\
         /y={}/m={:02}/d={:02}/h={:02}/m=00/macAddress={}/PT1H.json",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        mac_text(mac),
    ))
}

fn record(vnet: &Vnet, mac: Mac, entries: &[Entry], now: Timestamp) -> Value {
    let mut flows: BTreeMap<String, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    for entry in entries {
        let group = entry.group.map_or_else(|| "unspecified".to_owned(), |group| group.to_string());
        flows.entry(group).or_default().entry(&entry.rule).or_default().push(entry.text());
    }
    let flows: Vec<Value> = flows
        .into_iter()
        .map(|(group, rules)| {
            let groups: Vec<Value> = rules
                .into_iter()
                .map(|(rule, tuples)| json!({ "rule": rule, "flowTuples": tuples }))
                .collect();
            json!({ "aclID": group, "flowGroups": groups })
        })
        .collect();
    let location = vnet.meta.location.to_ascii_uppercase();
    json!({
        "time": format!("{}0000Z", utc(now).strftime("%Y-%m-%dT%H:%M:%S.%3f")),
        "flowLogVersion": 4,
        "flowLogGUID": Uuid::new_v5(&vnet.meta.guid, b"flow log"),
        "macAddress": mac_text(mac),
        "category": "FlowLogFlowEvent",
        "flowLogResourceID": format!(
            "/SUBSCRIPTIONS/{}/RESOURCEGROUPS/NETWORKWATCHERRG/PROVIDERS/MICROSOFT.NETWORK/NETWORKWATCHERS\
             /NETWORKWATCHER_{location}/FLOWLOGS/{}",
            subscription(vnet),
            log_name(vnet)
        ),
        "targetResourceID": vnet.meta.id.as_str(),
        "operationName": "FlowLogFlowEvent",
        "flowRecords": { "flows": flows },
    })
}

/// Adds a record to a file that is `{"records":[…]}` before and after.
fn append(path: &Path, record: &Value) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let length = file.metadata()?.len();
    let tail = u64::try_from(TAIL.len()).unwrap_or_default();
    let mut text = if length < tail {
        file.set_len(0)?;
        b"{\"records\":[".to_vec()
    } else {
        file.seek(SeekFrom::End(-i64::try_from(tail).unwrap_or_default()))?;
        let mut end = [0; 2];
        file.read_exact(&mut end)?;
        if end != TAIL {
            return Err(io::Error::other(format!("{} is no flow log", path.display())));
        }
        file.seek(SeekFrom::Start(length - tail))?;
        b",".to_vec()
    };
    text.extend(record.to_string().bytes());
    text.extend(TAIL);
    file.write_all(&text)
}

#[cfg(test)]
mod tests {
    use vnet::model::{Meta, ProvisioningState};

    use super::*;

    fn vnet() -> Vnet {
        let group = vnet::name::ArmId::group("00000000-aaaa-0000-0000-000000000000", "g");
        Vnet {
            meta: Meta {
                id: group.sibling("Microsoft.Network/virtualNetworks", "net"),
                location: "eastus".to_owned(),
                tags: BTreeMap::new(),
                etag: Uuid::nil(),
                guid: Uuid::nil(),
                state: ProvisioningState::Succeeded,
                changed: 1,
                kept: BTreeMap::new(),
            },
            prefixes: Vec::new(),
            subnets: BTreeMap::new(),
            peerings: BTreeMap::new(),
            default_outbound: [198, 18, 0, 1].into(),
        }
    }

    fn entry(state: char, counts: [u64; 4]) -> Entry {
        Entry {
            mac: Mac([0, 0x0d, 0x3a, 1, 2, 3]),
            group: Some(Uuid::nil()),
            rule: "DefaultRule_AllowInternetOutBound".to_owned(),
            tuple: Tuple {
                source: [10, 0, 0, 6].into(),
                destination: [52, 239, 184, 180].into(),
                protocol: 6,
                source_port: 23_956,
                destination_port: 443,
            },
            direction: Direction::Outbound,
            time: Timestamp(1_663_146_003_599),
            state,
            counts,
        }
    }

    #[test]
    fn a_tuple_is_as_azures_documentation_has_it() {
        assert_eq!(
            entry('B', [0; 4]).text(),
            "1663146003599,10.0.0.6,52.239.184.180,23956,443,6,O,B,NX,0,0,0,0"
        );
        let time = Timestamp(1_663_146_003_606);
        assert_eq!(
            entry('B', [0; 4]).told(time, 'E', [3, 767, 2, 1580]).text(),
            "1663146003606,10.0.0.6,52.239.184.180,23956,443,6,O,E,NX,3,767,2,1580"
        );
    }

    #[test]
    fn a_file_is_whole_json_after_every_record() {
        let folder = std::env::temp_dir().join(format!("aksnet-flow-files-{}", std::process::id()));
        let files = Files::new(&folder);
        let now = Timestamp(1_663_146_003_599);
        for n in 1..=3 {
            files.write(&vnet(), vec![entry('B', [0; 4])], now).expect("a file");
            let text = fs::read_to_string(folder.join(
                "insights-logs-flowlogflowevent/flowLogResourceID=/00000000-AAAA-0000-0000-000000000000_NETWORKWATCHERRG\
                 /NETWORKWATCHER_EASTUS_NET/y=2022/m=09/d=14/h=09/m=00/macAddress=000D3A010203/PT1H.json",
            ));
            let value: Value = serde_json::from_str(&text.expect("a file")).expect("JSON");
            let records = value["records"].as_array().expect("records");
            assert_eq!(records.len(), n);
            assert_eq!(records[n - 1]["time"], "2022-09-14T09:00:03.5990000Z");
            assert_eq!(records[n - 1]["flowLogVersion"], 4);
            let flow = &records[n - 1]["flowRecords"]["flows"][0];
            assert_eq!(flow["flowGroups"][0]["flowTuples"].as_array().map(Vec::len), Some(1));
        }
        fs::remove_dir_all(&folder).expect("the folder");
    }
}
