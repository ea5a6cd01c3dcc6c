/*
 * ab_imagechain.c
 *	  Entries of .images files, the index of newest images, and chains.
 *
 * Any process, in critical sections too; who holds which lock is the caller's
 * affair (ab_imagechain.h).  Only static memory and the stack.  A crash leaves entries
 * that count by their checksums, and links that rebuilding mends.
 */
#include "ab_imagechain.h"

#include "ab_file.h"
#include "ab_images.h"

#define GROUP_MAGIC 0x41424947	/* "ABIG" */
#define MAX_SLOTS	(PG_UINT32_MAX - 2 * AB_IMAGE_BATCH)

pg_crc32c
ab_image_page_crc(const char *page)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, page, BLCKSZ);
	FIN_CRC32C(crc);
	return crc;
}

/* ---- entries ---- */

static pg_crc32c
entry_crc(AbImageRef at, const AbImageEntry *e)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &at, sizeof(at));
	COMP_CRC32C(crc, e, offsetof(AbImageEntry, crc));
	FIN_CRC32C(crc);
	return crc;
}

bool
ab_image_entry_is_valid(AbImageRef at, const AbImageEntry *e)
{
	return e->crc == entry_crc(at, e);
}

bool
ab_image_entry_is_empty(const AbImageEntry *e)
{
	const char *bytes = (const char *) e;

	return bytes[0] == 0 && memcmp(bytes, bytes + 1, sizeof(*e) - 1) == 0;
}

void
ab_image_entry_seal(AbImageRef at, AbImageEntry *e)
{
	e->crc = entry_crc(at, e);
}

bool
ab_image_entry_is(const AbImageEntry *e, AbForkKey key, BlockNumber block)
{
	return e->block == block && e->rel == key.rel && e->fork == key.fork &&
		e->spc == key.spc;
}

bool
ab_image_entry_read(Oid db, AbImageRef at, AbImageEntry *e)
{
	int			fd = ab_imagefile_epoch(db, ab_image_epoch(at));

	if (fd < 0 || !ab_imagefile_read(fd, e, sizeof(*e), ab_slot_entry_offset(at.slot)))
		return false;
	errno = 0;
	return ab_image_entry_is_valid(at, e);
}

bool
ab_image_entry_write(Oid db, AbImageRef at, AbImageEntry *e)
{
	int			fd = ab_imagefile_epoch(db, ab_image_epoch(at));

	ab_image_entry_seal(at, e);
	return fd >= 0 &&
		ab_imagefile_write(fd, e, sizeof(*e), ab_slot_entry_offset(at.slot));
}

bool
ab_image_page_read(Oid db, AbImageRef at, const AbImageEntry *e, char *page)
{
	int			fd = ab_imagefile_epoch(db, ab_image_epoch(at));

	if (fd < 0 || !ab_imagefile_read(fd, page, BLCKSZ, ab_slot_page_offset(at.slot)))
		return false;
	errno = 0;
	return ab_image_page_crc(page) == e->page_crc;
}

bool
ab_image_group_read(Oid db, AbSnapId epoch, uint32 group, AbImageGroup *g)
{
	int			fd = ab_imagefile_epoch(db, epoch);

	return fd >= 0 &&
		ab_imagefile_read_padded(fd, g, sizeof(*g), ab_group_offset(group));
}

static pg_crc32c
head_crc(const AbGroupHead *h)
{
	return ab_crc_without(h, sizeof(*h), offsetof(AbGroupHead, crc));
}

bool
ab_image_head_is_valid(const AbGroupHead *h)
{
	return h->magic == GROUP_MAGIC && h->synced <= AB_GROUP_SLOTS &&
		h->crc == head_crc(h);
}

static void
make_head(AbGroupHead *h, uint32 synced)
{
	memset(h, 0, sizeof(*h));
	h->magic = GROUP_MAGIC;
	h->synced = synced;
	h->crc = head_crc(h);
}

void
ab_image_group_head_write(Oid db, AbSnapId epoch, uint32 group, uint32 synced)
{
	int			fd = ab_imagefile_epoch(db, epoch);
	AbGroupHead h;

	make_head(&h, synced);
	if (fd >= 0)
		(void) ab_imagefile_write(fd, &h, sizeof(h), ab_group_offset(group));
}

/* ---- appending ---- */

/* How many of n slots from one on are in its group. */
static int
slots_here(uint32 slot, int n)
{
	return Min(n, AB_GROUP_SLOTS - (int) (slot % AB_GROUP_SLOTS));
}

static bool
write_entries(int fd, uint32 slot, int n, const AbImageEntry *entries)
{
	static AbImageGroup group;

	/* a new group gets its head with its first entries */
	if (slot % AB_GROUP_SLOTS != 0)
		return ab_imagefile_write(fd, entries, n * sizeof(AbImageEntry),
								  ab_slot_entry_offset(slot));
	make_head(&group.head, 0);
	memcpy(group.entry, entries, n * sizeof(AbImageEntry));
	return ab_imagefile_write(fd, &group, sizeof(AbGroupHead) + n * sizeof(AbImageEntry),
							  ab_group_offset(slot / AB_GROUP_SLOTS));
}

/*
 * Pages first: as soon as an entry is there the size covers its slot, so that no other
 * append takes it.
 */
static bool
write_images(int fd, uint32 first, int n, const AbImageEntry *entries,
			 const char *const *pages, bool *entries_begun)
{
	int			here;

	*entries_begun = false;
	for (int i = 0; i < n; i += here)
	{
		here = slots_here(first + i, n - i);
		if (!ab_imagefile_write_pages(fd, pages + i, here, ab_slot_page_offset(first + i)))
			return false;
	}
	*entries_begun = true;
	for (int i = 0; i < n; i += here)
	{
		here = slots_here(first + i, n - i);
		if (!write_entries(fd, first + i, here, entries + i))
			return false;
	}
	return ab_imagefile_sync(fd);
}

/*
 * Has something been saved in the file and counted?  Then its name is durable.  After an
 * append that failed the answer stays no: too many syncs, not too few.
 */
static bool
is_begun(int fd)
{
	AbGroupHead h;

	return ab_imagefile_read(fd, &h, sizeof(h), ab_group_offset(0)) &&
		ab_image_head_is_valid(&h) && h.synced > 0;
}

bool
ab_image_append(Oid db, AbSnapId epoch, int n, AbImageEntry *entries,
				const char *const *pages, uint32 *first)
{
	int			fd = ab_imagefile_epoch(db, epoch);
	bool		entries_begun;
	int			save_errno;

	if (fd < 0 || !ab_imagefile_slots(fd, first))
		return false;
	if (*first > MAX_SLOTS)
	{
		errno = EFBIG;
		return false;
	}
	for (int i = 0; i < n; i++)
		ab_image_entry_seal(ab_image_ref(epoch, *first + i), &entries[i]);
	if (write_images(fd, *first, n, entries, pages, &entries_begun) &&
		(is_begun(fd) || ab_imagefile_sync_names(db)))
		return true;
	save_errno = errno;
	if (entries_begun)
		ab_image_disown(db, epoch, *first, n, entries);
	errno = save_errno;
	return false;
}

void
ab_image_note_synced(Oid db, AbSnapId epoch, uint32 first, int n)
{
	int			here;

	for (int i = 0; i < n; i += here)
	{
		uint32		group = (first + i) / AB_GROUP_SLOTS;
		uint32		slot = (first + i) % AB_GROUP_SLOTS;
		int			fd = ab_imagefile_epoch(db, epoch);
		AbGroupHead h;

		here = slots_here(first + i, n - i);

		/* not over what an append left that failed */
		if (fd >= 0 && ab_imagefile_read(fd, &h, sizeof(h), ab_group_offset(group)) &&
			ab_image_head_is_valid(&h) && h.synced == slot)
			ab_image_group_head_write(db, epoch, group, slot + here);
	}
}

void
ab_image_disown(Oid db, AbSnapId epoch, uint32 first, int n, AbImageEntry *entries)
{
	for (int i = 0; i < n; i++)
	{
		entries[i].flags |= AB_IMAGE_DEAD;
		(void) ab_image_entry_write(db, ab_image_ref(epoch, first + i), &entries[i]);
	}
	ab_imagefile_set_swept(db, epoch, 0);
}

/* ---- the index ---- */

bool
ab_image_heads_read(Oid db, AbForkKey key, BlockNumber block, int n, AbImageRef *heads)
{
	int			fd = ab_imagefile_index(db, key, false);

	if (fd >= 0)
		return ab_imagefile_read_padded(fd, heads, n * sizeof(AbImageRef),
										(off_t) block * sizeof(AbImageRef));
	memset(heads, 0, n * sizeof(AbImageRef));
	return errno == ENOENT;
}

bool
ab_image_heads_write(Oid db, AbForkKey key, BlockNumber block, int n,
					 const AbImageRef *heads)
{
	int			fd = ab_imagefile_index(db, key, true);

	return fd >= 0 && ab_imagefile_write(fd, heads, n * sizeof(AbImageRef),
										 (off_t) block * sizeof(AbImageRef));
}

/* ---- chains ---- */

void
ab_image_link(Oid db, AbImageRef prev, AbImageEntry *e)
{
	static const AbImageRef none = {0};
	AbImageEntry p;
	AbImageEntry j;

	e->prev = prev;
	e->jump = prev;
	e->depth = 1;
	e->jump_depth = 0;
	if (!AbImageRefIsValid(prev))
	{
		e->jump = none;
		return;
	}

	/*
	 * It may be gone, with all below, or damaged; then a new count begins here.
	 * Who needs the damaged one will hear of it when he comes to read it.
	 */
	if (!ab_image_entry_read(db, prev, &p))
		return;
	e->depth = p.depth + 1;
	e->jump_depth = p.depth;
	if (AbImageRefIsValid(p.jump) && ab_image_entry_read(db, p.jump, &j) &&
		p.depth - p.jump_depth == j.depth - j.jump_depth)
	{
		e->jump = j.jump;
		e->jump_depth = j.jump_depth;
	}
}

static bool
go_to(AbImageCursor *c, AbImageRef to)
{
	AbImageEntry e;

	if (!ab_image_entry_read(c->db, to, &e))
		return false;
	errno = 0;
	if (!ab_image_entry_is(&e, c->key, c->block) || (e.flags & AB_IMAGE_DEAD))
		return false;
	c->at = to;
	c->entry = e;
	return true;
}

AbImageStep
ab_image_first(AbImageCursor *c, Oid db, AbForkKey key, BlockNumber block,
			   XLogRecPtr from)
{
	AbImageRef	head;

	c->db = db;
	c->key = key;
	c->block = block;
	if (!ab_image_heads_read(db, key, block, 1, &head))
		return AB_STEP_FAILED;
	if (!AbImageRefIsValid(head) || head.lsn < from)
		return AB_STEP_END;
	return go_to(c, head) ? AB_STEP_MOVED : AB_STEP_FAILED;
}

/*
 * An image older than "from" is not looked at: its file may be gone.
 */
AbImageStep
ab_image_step(AbImageCursor *c, XLogRecPtr from)
{
	AbImageRef	prev = c->entry.prev;
	AbImageRef	jump = c->entry.jump;

	if (AbImageRefIsValid(jump) && jump.lsn >= from && jump.lsn < c->at.lsn &&
		go_to(c, jump))
		return AB_STEP_MOVED;
	if (!AbImageRefIsValid(prev) || prev.lsn < from)
		return AB_STEP_END;
	errno = 0;
	return prev.lsn < c->at.lsn && go_to(c, prev) ? AB_STEP_MOVED : AB_STEP_FAILED;
}

AbImageStep
ab_image_find(AbImageCursor *c, Oid db, AbForkKey key, BlockNumber block,
			  XLogRecPtr from)
{
	AbImageStep step = ab_image_first(c, db, key, block, from);

	if (step != AB_STEP_MOVED)
		return step;
	while (step == AB_STEP_MOVED)
		step = ab_image_step(c, from);
	return step == AB_STEP_END ? AB_STEP_MOVED : step;
}

/*
 * Let the jumps of newer images of a block that lead to one image lead to another.  All
 * of those are on the way of a search for the next newer one, "above", which is left
 * alone: jumps do not cross.  If something has made some cross, one is left that leads
 * to what does not count any more, and searches pass it over.
 */
static bool
redirect_jumps(AbImageCursor *c, AbImageRef from, AbImageRef to, AbImageRef above)
{
	AbImageStep step = ab_image_first(c, c->db, c->key, c->block, from.lsn + 1);

	while (step == AB_STEP_MOVED && !ab_image_ref_equals(c->at, above))
	{
		AbImageEntry e = c->entry;

		if (ab_image_ref_equals(e.jump, from))
		{
			e.jump = to;
			if (!ab_image_entry_write(c->db, c->at, &e))
				return false;
		}
		step = ab_image_step(c, from.lsn + 1);
	}
	return step != AB_STEP_FAILED;
}

static bool
set_dead(Oid db, AbImageRef at, bool dead)
{
	AbImageEntry e;

	if (!ab_image_entry_read(db, at, &e))
		return false;
	e.flags = dead ? e.flags | AB_IMAGE_DEAD : e.flags & ~AB_IMAGE_DEAD;
	return ab_image_entry_write(db, at, &e);
}

/* Let the one link that makes the chain lead to another image. */
static bool
relink(AbImageCursor *c, bool is_head, AbImageRef old, AbImageRef new)
{
	AbImageEntry e = c->entry;

	if (is_head)
		return ab_image_heads_write(c->db, c->key, c->block, 1, &new);
	e.prev = new;
	if (ab_image_ref_equals(e.jump, old))
		e.jump = new;
	return ab_image_entry_write(c->db, c->at, &e);
}

/*
 * The old image stops counting first, so that jumps which still lead to it mislead
 * nobody; then one write puts the new one into the chain.
 */
bool
ab_image_replace(Oid db, AbForkKey key, BlockNumber block, AbImageRef old, AbImageRef new)
{
	AbImageCursor c = {.db = db, .key = key, .block = block};
	AbImageRef	head;
	bool		is_head;
	int			save_errno;

	if (!ab_image_heads_read(db, key, block, 1, &head))
		return false;
	is_head = ab_image_ref_equals(head, old);
	errno = 0;
	if (!is_head &&
		(ab_image_find(&c, db, key, block, old.lsn + 1) != AB_STEP_MOVED ||
		 !ab_image_ref_equals(c.entry.prev, old)))
		return false;
	if (!set_dead(db, old, true))
		return false;
	if (!relink(&c, is_head, old, new))
	{
		save_errno = errno;
		(void) set_dead(db, old, false);
		errno = save_errno;
		return false;
	}
	if (!is_head)
		(void) redirect_jumps(&c, old, new, c.at);
	return true;
}

/*
 * Of the image that goes and the next newer one, the place in the order of jumps that
 * is used by more of them is kept: the one from which a jump goes further.  So
 * searches stay short however many images go.
 */
bool
ab_image_detach(Oid db, AbForkKey key, BlockNumber block, AbImageRef at,
				const AbImageEntry *e)
{
	AbImageCursor c;
	AbImageRef	head;
	AbImageRef	above;
	AbImageEntry u;
	bool		keep_place;

	if (!ab_image_heads_read(db, key, block, 1, &head))
		return false;
	if (ab_image_ref_equals(head, at))
		return ab_image_heads_write(db, key, block, 1, &e->prev);
	switch (ab_image_find(&c, db, key, block, at.lsn + 1))
	{
		case AB_STEP_FAILED:
			return false;
		case AB_STEP_END:
			return true;
		case AB_STEP_MOVED:
			break;
	}
	above = c.at;
	u = c.entry;
	if (!ab_image_ref_equals(u.prev, at))
		return true;			/* it is in no chain */

	keep_place = e->depth - e->jump_depth > u.depth - u.jump_depth;
	if (!redirect_jumps(&c, at, keep_place ? above : e->prev, above))
		return false;
	u.prev = e->prev;
	if (keep_place)
	{
		u.jump = e->jump;
		u.depth = e->depth;
		u.jump_depth = e->jump_depth;
	}
	else if (ab_image_ref_equals(u.jump, at))
		u.jump = e->prev;
	return ab_image_entry_write(db, above, &u);
}
