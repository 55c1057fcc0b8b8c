/* Which frames of an interface that the kernel and a mover share go to the mover (AF_XDP): IPv4
 * packets to the mover's address, and ARP about it. Everything else goes to the kernel, as if
 * nobody else were there.
 *
 * Compiled for the kernel (-target bpf). Before DPDK's driver loads it, src/dpdk/steer.rs puts the
 * mover's address in the place of `wanted` and of the zeros in the function's name, by which a mover
 * knows its own program again. The driver looks for `xsks_map` and puts its sockets there. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* linux/bpf.h */
struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};
enum { MAP_TYPE_XSKMAP = 17, PASS = 2 };
static long (*const redirect_map)(void *map, u64 key, u64 otherwise) = (void *)51;

struct {
	int (*type)[MAP_TYPE_XSKMAP];
	int (*key_size)[4];
	int (*value_size)[4];
	int (*max_entries)[64];
} xsks_map __attribute__((section(".maps"), used));

/* In network byte order. */
volatile const struct {
	u8 mark[12];
	u32 address;
} wanted __attribute__((section(".rodata"), used)) = { "setline-ip:", 0 };

#define BE16(n) ((u16)((n) >> 8 | (n) << 8))

__attribute__((section("xdp"), used)) int
sl_00000000(struct xdp_md *ctx)
{
	u8 *frame = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;
	u32 at = 12, target;

	if (frame + 18 > end)
		return PASS;
	u16 type = *(u16 *)(frame + at);
	if (type == BE16(0x8100)) { /* IEEE 802.1Q */
		at = 16;
		type = *(u16 *)(frame + 16);
	}
	if (type == BE16(0x0800))
		target = at + 2 + 16; /* RFC 791: destination address */
	else if (type == BE16(0x0806))
		target = at + 2 + 24; /* RFC 826: target protocol address */
	else
		return PASS;
	if (frame + target + 4 > end || *(u32 *)(frame + target) != wanted.address)
		return PASS;
	/* Without a socket at this queue the kernel gets it, and drops it: the address is not its own. */
	return redirect_map(&xsks_map, ctx->rx_queue_index, PASS);
}
