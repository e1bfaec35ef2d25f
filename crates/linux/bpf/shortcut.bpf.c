// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The shortcut of flows that a node has let through: from the link that a packet came in by to the one that it
// leaves by, past the node's own stack. Not here: any decision. Which flows pass, connection tracking has written
// down when their first packets took the long way; where they go, the kernel's routes and neighbours say.
//
// What takes the long way: first packets and last ones (SYN, FIN, RST), whatever is translated (services, masquerade,
// host ports), fragments, IP options, every protocol but TCP and UDP, packets for the node itself, and now and then a
// packet of each flow, so that connection tracking does not forget it.

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

// Helpers, by their numbers in linux/bpf.h.
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

enum { CURRENT_NETNS = -1 };

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

// Whether a flow has passed both ways, untranslated, and is in no need of being seen.
static ALWAYS_INLINE int has_passed(struct __sk_buff *packet, struct bpf_sock_tuple *flow, __u32 size, __u8 protocol)
{
	struct bpf_ct_opts opts = { .netns_id = CURRENT_NETNS, .l4proto = protocol };
	struct nf_conn *known = bpf_skb_ct_lookup(packet, flow, size, &opts, sizeof(opts));
	unsigned long status;
	__s32 left;
	int passed;

	if (!known)
		return 0;
	status = known->status;
	left = (__s32)(known->timeout - (__u32)jiffies());
	passed = (status & (SEEN_REPLY | CONFIRMED | UNUSUAL)) == (SEEN_REPLY | CONFIRMED);
	passed = passed && left > (__s32)renewal;
	passed = passed && (protocol != IPPROTO_TCP || known->proto.tcp.state == TCP_ESTABLISHED);
	bpf_ct_release(known);
	return passed;
}

// Where the kernel would route a packet. Fails for what is the node's own, has no neighbour yet or is too long.
static ALWAYS_INLINE int find_way(struct __sk_buff *packet, struct bpf_fib_lookup *way, __u8 protocol,
				  struct ports ports)
{
	way->l4_protocol = protocol;
	way->sport = ports.source;
	way->dport = ports.destination;
	way->ifindex = packet->ifindex;
	return fib_lookup(packet, way, sizeof(*way), 0) == BPF_FIB_LKUP_RET_SUCCESS;
}

static ALWAYS_INLINE void address(struct ethhdr *ethernet, const struct bpf_fib_lookup *way)
{
	__builtin_memcpy(ethernet->h_dest, way->dmac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, way->smac, ETH_ALEN);
}

static ALWAYS_INLINE int shorten_v4(struct __sk_buff *packet, struct ethhdr *ethernet, void *end)
{
	struct iphdr *ip = (void *)(ethernet + 1);
	struct bpf_sock_tuple flow = {};
	struct bpf_fib_lookup way = { .family = INET };
	struct ports ports;
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
	if (!has_passed(packet, &flow, sizeof(flow.ipv4), ip->protocol) ||
	    !find_way(packet, &way, ip->protocol, ports))
		return TC_ACT_UNSPEC;
	address(ethernet, &way);
	// RFC 1624: the header's sum grows by what the word with the TTL loses.
	check = ip->check + be16(0x0100);
	ip->check = (__u16)(check + (check >= 0xffff));
	ip->ttl--;
	return redirect(way.ifindex, 0);
}

static ALWAYS_INLINE int shorten_v6(struct __sk_buff *packet, struct ethhdr *ethernet, void *end)
{
	struct ipv6hdr *ip = (void *)(ethernet + 1);
	struct bpf_sock_tuple flow = {};
	struct bpf_fib_lookup way = { .family = INET6 };
	struct ports ports;

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
	if (!has_passed(packet, &flow, sizeof(flow.ipv6), ip->nexthdr) || !find_way(packet, &way, ip->nexthdr, ports))
		return TC_ACT_UNSPEC;
	address(ethernet, &way);
	ip->hop_limit--;
	return redirect(way.ifindex, 0);
}

SECTION("tc")
int shortcut(struct __sk_buff *packet)
{
	struct ethhdr *ethernet = (void *)(long)packet->data;
	void *end = (void *)(long)packet->data_end;

	// What a bridge hands on is not the node's to route.
	if ((void *)(ethernet + 1) > end || packet->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	if (ethernet->h_proto == be16(ETH_P_IP))
		return shorten_v4(packet, ethernet, end);
	if (ethernet->h_proto == be16(ETH_P_IPV6))
		return shorten_v6(packet, ethernet, end);
	return TC_ACT_UNSPEC;
}

// What connection tracking may be asked by.
char licence[] SECTION("license") = "Dual BSD/GPL";
