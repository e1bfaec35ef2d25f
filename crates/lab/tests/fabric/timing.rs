use std::{fmt::Write, time::Instant};
use daemon::fabric::Scope;
use vnet::host::Health;
use crate::lab::Lab;
#[test]
fn timing() {
    let mut text = "vnet v 10.1.0.0/16\nsubnet a 10.1.0.0/20\n".to_owned();
    let vm = |n: u32| format!("vm m{n} 10.1.{}.{}\n", n / 200, n % 200 + 4);
    for n in 0..100 { write!(text, "{}", vm(n)).unwrap(); }
    let t = Instant::now();
    let mut lab = Lab::new(&text);
    eprintln!("100 machines {:?}", t.elapsed());
    let t = Instant::now();
    let d = lab.pass(&Health::default(), Scope::All);
    eprintln!("full pass {:?} {}", t.elapsed(), d.is_nothing());
    let t = Instant::now();
    lab.pass(&Health::default(), Scope::Changed);
    eprintln!("changed pass {:?}", t.elapsed());
    let f = vnet::host::compile_fabric(&lab.name, &lab.region, &Health::default());
    let t = Instant::now();
    let f2 = vnet::host::compile_fabric(&lab.name, &lab.region, &Health::default());
    eprintln!("compile {:?} {}", t.elapsed(), f == f2);
    let v = lab.vnet("v");
    let st = &f.namespaces[v.name()];
    let t = Instant::now();
    linux::net::observe(&v, st).unwrap();
    eprintln!("observe vnet {:?}", t.elapsed());
    let t = Instant::now();
    linux::nft::load(&v, st.nft.as_ref().unwrap()).unwrap();
    eprintln!("nft load {:?}", t.elapsed());
    let t = Instant::now();
    linux::nft::loaded(&v).unwrap();
    eprintln!("nft loaded {:?}", t.elapsed());
    let m = lab.machine("m1");
    let t = Instant::now();
    linux::net::observe(&m, &f.namespaces[m.name()]).unwrap();
    eprintln!("observe vm {:?}", t.elapsed());
    let t = Instant::now();
    linux::netns::Netns::list().unwrap();
    eprintln!("list {:?}", t.elapsed());
    write!(text, "{}", vm(100)).unwrap();
    let t = Instant::now();
    lab.becomes(&text);
    eprintln!("one more {:?}", t.elapsed());
    let t = Instant::now();
    lab.becomes("vnet v 10.1.0.0/16\nsubnet a 10.1.0.0/20\n");
    eprintln!("all gone {:?}", t.elapsed());
}
