// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The shortcut of flows that a namespace has let through: from the link that a packet came in by to the one that it
// leaves by, past the namespace's own stack. Not here: any decision. Which flows pass, connection tracking has written
// down when their first packets took the long way; where they go, the kernel's routes and neighbours say.
//
// What takes the long way: first packets and last ones (SYN, FIN, RST), whatever is translated or marked (services,
// masquerade, host ports, balanced flows), fragments, IP options, every protocol but TCP and UDP, packets for the
// namespace itself, and now and then a packet of each flow, so that connection tracking does not forget it.
//
// Two programs: `shortcut` on the links of a node, `crossing` on the NICs of a virtual network, where it also asks
// whether the sender has that address, in which zone its flows are, and whether the way leads to a NIC at all.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define SECTION(name) __attribute__((section(name), used))
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define KERNEL __attribute__((preserve_access_index))
#define be16(number) ((__be16)__builtin_bswap16(number))
#define be32(number) ((__be32)__builtin_bswap32(number))

enum { INET = 2, INET6 = 10 };

// A NIC's end in its virtual network.
struct nic {
	// Its address, and the pods behind it: senders that need not be looked for. Others it may have, too.
	__be32 address;
	__be32 pods;
	__be32 pods_mask;
	// The conntrack zone of flows from or to the range: an overlay's. 0 without one.
	__u32 zone;
	__be32 network;
	__be32 mask;
	__be32 network6[4];
	__be32 mask6[4];
};

// By the number of the link. Of one namespace, as links have numbers of their own in each.
struct {
	int (*type)[BPF_MAP_TYPE_HASH];
	int (*max_entries)[65536];
	int (*map_flags)[BPF_F_NO_PREALLOC];
	__u32 *key;
	struct nic *value;
} nics SECTION(".maps");

// Helpers, by their numbers in linux/bpf.h.
static void *(*const map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const redirect)(__u32 link, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const fib_lookup)(struct __sk_buff *, struct bpf_fib_lookup *, int size, __u32 flags) =
	(void *)BPF_FUNC_fib_lookup;
static __u64 (*const jiffies)(void) = (void *)BPF_FUNC_jiffies64;

// Of the kernel's connection tracking only what is read here; where it lies is looked up when this is loaded
// (net/netfilter/nf_conntrack.h, net/netfilter/nf_conntrack_bpf.c).
struct ip_ct_tcp {
	__u8 state;
} KERNEL;

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} KERNEL;

struct nf_conn {
	__u32 timeout;
	unsigned long status;
	__u32 mark;
	union nf_conntrack_proto proto;
} KERNEL;

struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u16 ct_zone_id;
	__u8 ct_zone_dir;
	__u8 reserved[3];
};

// Of the options: this namespace, and a zone in both directions (NF_CT_DEFAULT_ZONE_DIR).
enum { CURRENT_NETNS = -1, BOTH_DIRECTIONS = 3 };

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *, struct bpf_sock_tuple *, __u32 size,
					 struct bpf_ct_opts *, __u32 opts_size) SECTION(".ksyms");
extern void bpf_ct_release(struct nf_conn *) SECTION(".ksyms");

// linux/netfilter/nf_conntrack_common.h, nf_conntrack_tcp.h. Unusual is what is or may be rewritten on its way (NAT in
// either direction, adjusted sequence numbers, helpers) or is about to go.
enum {
	SEEN_REPLY = 1 << 1,
	CONFIRMED = 1 << 3,
	UNUSUAL = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 13,
	TCP_ESTABLISHED = 3,
};

// A flow that connection tracking would forget within so many jiffies is shown to it again. Set when this is loaded.
const volatile __u32 renewal = 0;

struct ports {
	__be16 source;
	__be16 destination;
};

// Whether a packet is one of the middle of a flow, and the flow's ports.
static ALWAYS_INLINE int is_midway(void *header, void *end, __u8 protocol, struct ports *ports)
{
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = header;

		if ((void *)(tcp + 1) > end || !tcp->ack || tcp->syn || tcp->fin || tcp->rst)
			return 0;
	} else if (protocol == IPPROTO_UDP) {
		if (header + sizeof(struct udphdr) > end)
			return 0;
	} else {
		return 0;
	}
	// Both begin with them.
	*ports = *(struct ports *)header;
	return 1;
}

// Whether a flow has passed both ways, untranslated and unmarked, and is in no need of being seen.
static ALWAYS_INLINE int has_passed(struct __sk_buff *packet, struct bpf_sock_tuple *flow, __u32 size, __u8 protocol,
				    __u16 zone)
{
	struct bpf_ct_opts opts = { .netns_id = CURRENT_NETNS, .l4proto = protocol, .ct_zone_id = zone };
	struct nf_conn *known;
	unsigned long status;
	__s32 left;
	int passed;

	opts.ct_zone_dir = zone ? BOTH_DIRECTIONS : 0;
	known = bpf_skb_ct_lookup(packet, flow, size, &opts, sizeof(opts));
	if (!known)
		return 0;
	status = known->status;
	left = (__s32)(known->timeout - (__u32)jiffies());
	passed = (status & (SEEN_REPLY | CONFIRMED | UNUSUAL)) == (SEEN_REPLY | CONFIRMED);
	passed = passed && left > (__s32)renewal && !known->mark;
	passed = passed && (protocol != IPPROTO_TCP || known->proto.tcp.state == TCP_ESTABLISHED);
	bpf_ct_release(known);
	return passed;
}

// Whether the way back leads to the link that a packet came in by: nobody sends in another's name.
static ALWAYS_INLINE int leads_back(struct __sk_buff *packet, struct bpf_fib_lookup *back)
{
	back->ifindex = packet->ifindex;
	return fib_lookup(packet, back, sizeof(*back), BPF_FIB_LOOKUP_SKIP_NEIGH) == BPF_FIB_LKUP_RET_SUCCESS &&
	       back->ifindex == packet->ifindex;
}

// Finds where the kernel would route a packet. Fails for what is the namespace's own, has no neighbour yet or is too
// long; in a virtual network for what does not lead to a NIC.
static ALWAYS_INLINE int find_way(struct __sk_buff *packet, struct bpf_fib_lookup *way, __u8 protocol,
				  struct ports ports, const struct nic *nic)
{
	__u32 link = packet->ifindex;

	way->l4_protocol = protocol;
	way->sport = ports.source;
	way->dport = ports.destination;
	way->ifindex = link;
	if (fib_lookup(packet, way, sizeof(*way), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return 0;
	link = way->ifindex;
	return !nic || map_lookup_elem(&nics, &link);
}

static ALWAYS_INLINE void address(struct ethhdr *ethernet, const struct bpf_fib_lookup *way)
{
	__builtin_memcpy(ethernet->h_dest, way->dmac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, way->smac, ETH_ALEN);
}

static ALWAYS_INLINE int shorten_v4(struct __sk_buff *packet, struct ethhdr *ethernet, void *end,
				    const struct nic *nic)
{
	struct iphdr *ip = (void *)(ethernet + 1);
	struct bpf_fib_lookup way = { .family = INET };
	struct bpf_sock_tuple flow = {};
	struct ports ports;
	__u16 zone = 0;
	__u32 check;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1)
		return TC_ACT_UNSPEC;
	// IP_MF and the offset: net/ip.h.
	if (ip->frag_off & be16(0x3fff) || !is_midway(ip + 1, end, ip->protocol, &ports))
		return TC_ACT_UNSPEC;
	flow.ipv4.saddr = way.ipv4_src = ip->saddr;
	flow.ipv4.daddr = way.ipv4_dst = ip->daddr;
	flow.ipv4.sport = ports.source;
	flow.ipv4.dport = ports.destination;
	way.tos = ip->tos;
	if (nic && ((ip->saddr & nic->mask) == nic->network || (ip->daddr & nic->mask) == nic->network))
		zone = nic->zone;
	if (!has_passed(packet, &flow, sizeof(flow.ipv4), ip->protocol, zone))
		return TC_ACT_UNSPEC;
	if (nic && ip->saddr != nic->address && (ip->saddr & nic->pods_mask) != nic->pods) {
		struct bpf_fib_lookup back = { .family = INET };

		back.ipv4_dst = ip->saddr;
		back.ipv4_src = ip->daddr;
		if (!leads_back(packet, &back))
			return TC_ACT_UNSPEC;
	}
	if (!find_way(packet, &way, ip->protocol, ports, nic))
		return TC_ACT_UNSPEC;
	address(ethernet, &way);
	// RFC 1624: the header's sum grows by what the word with the TTL loses.
	check = ip->check + be16(0x0100);
	ip->check = (__u16)(check + (check >= 0xffff));
	ip->ttl--;
	return redirect(way.ifindex, 0);
}

static ALWAYS_INLINE int is_within(const struct in6_addr *address, const struct nic *nic)
{
	const __be32 *words = address->in6_u.u6_addr32;

	return (words[0] & nic->mask6[0]) == nic->network6[0] && (words[1] & nic->mask6[1]) == nic->network6[1] &&
	       (words[2] & nic->mask6[2]) == nic->network6[2] && (words[3] & nic->mask6[3]) == nic->network6[3];
}

static ALWAYS_INLINE int shorten_v6(struct __sk_buff *packet, struct ethhdr *ethernet, void *end,
				    const struct nic *nic)
{
	struct ipv6hdr *ip = (void *)(ethernet + 1);
	struct bpf_fib_lookup way = { .family = INET6 };
	struct bpf_sock_tuple flow = {};
	struct ports ports;
	__u16 zone = 0;

	if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1)
		return TC_ACT_UNSPEC;
	// Fragments and options are next headers of their own.
	if (!is_midway(ip + 1, end, ip->nexthdr, &ports))
		return TC_ACT_UNSPEC;
	__builtin_memcpy(flow.ipv6.saddr, &ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(flow.ipv6.daddr, &ip->daddr, sizeof(ip->daddr));
	__builtin_memcpy(way.ipv6_src, &ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(way.ipv6_dst, &ip->daddr, sizeof(ip->daddr));
	flow.ipv6.sport = ports.source;
	flow.ipv6.dport = ports.destination;
	way.flowinfo = *(__be32 *)ip & be32(0x0fffffff);
	if (nic && (is_within(&ip->saddr, nic) || is_within(&ip->daddr, nic)))
		zone = nic->zone;
	if (!has_passed(packet, &flow, sizeof(flow.ipv6), ip->nexthdr, zone))
		return TC_ACT_UNSPEC;
	if (nic) {
		struct bpf_fib_lookup back = { .family = INET6 };

		__builtin_memcpy(back.ipv6_dst, &ip->saddr, sizeof(ip->saddr));
		__builtin_memcpy(back.ipv6_src, &ip->daddr, sizeof(ip->daddr));
		if (!leads_back(packet, &back))
			return TC_ACT_UNSPEC;
	}
	if (!find_way(packet, &way, ip->nexthdr, ports, nic))
		return TC_ACT_UNSPEC;
	address(ethernet, &way);
	ip->hop_limit--;
	return redirect(way.ifindex, 0);
}

static ALWAYS_INLINE int shorten(struct __sk_buff *packet, const struct nic *nic)
{
	struct ethhdr *ethernet = (void *)(long)packet->data;
	void *end = (void *)(long)packet->data_end;

	// What a bridge hands on is not for the namespace to route.
	if ((void *)(ethernet + 1) > end || packet->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	if (ethernet->h_proto == be16(ETH_P_IP))
		return shorten_v4(packet, ethernet, end, nic);
	if (ethernet->h_proto == be16(ETH_P_IPV6))
		return shorten_v6(packet, ethernet, end, nic);
	return TC_ACT_UNSPEC;
}

SECTION("tc")
int shortcut(struct __sk_buff *packet)
{
	return shorten(packet, 0);
}

SECTION("tc")
int crossing(struct __sk_buff *packet)
{
	__u32 link = packet->ifindex;
	const struct nic *nic = map_lookup_elem(&nics, &link);

	return nic ? shorten(packet, nic) : TC_ACT_UNSPEC;
}

// What connection tracking may be asked by.
char licence[] SECTION("license") = "Dual BSD/GPL";
