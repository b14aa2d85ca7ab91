// Records: what the accounts of the network hold, each record with its fate (see expect.mjs).
//
//   ordinary   posts, replies, likes, reposts, follows and blocks from 30 days before the window to 30 days after it
//   dated      posts whose createdAt is odd: each with the second that it names, its synctimestamp, or null where it is refused
//   fresh, edited   one more record, and one as its owner writes it anew
//   shaped     posts and edges with every field that has a rule of its own, foreign types, and fields of the wrong type

import { WINDOW, bucket, isInside, secondOf } from './expect.mjs'

const DAY_MS = 864e5
const FIRST_MS = Date.parse('2024-09-27T00:00:00Z') - 30 * DAY_MS
const LAST_MS = Date.parse('2024-12-02T00:00:00Z') + 30 * DAY_MS

export const POST = 'app.bsky.feed.post'
const LIKE = 'app.bsky.feed.like'
const REPOST = 'app.bsky.feed.repost'
const FOLLOW = 'app.bsky.graph.follow'
const BLOCK = 'app.bsky.graph.block'

const range = (count, each) => Array.from({ length: count }, (_, index) => each(index))

// A time of its own for the index-th of `count` records, evenly from before the window to after it.
const spread = (index, count) => new Date(FIRST_MS + Math.floor(((LAST_MS - FIRST_MS) * (index + 0.5)) / count)).toISOString()

// A record with an ordinary createdAt.
const plain = (collection, createdAt, fields, rkey) => ({ collection, rkey, time: secondOf(createdAt), value: { $type: collection, createdAt, ...fields } })

const INSIDE = '2024-10-20T10:20:30.456Z'
const inside = (collection, fields, rkey) => plain(collection, INSIDE, fields, rkey)
const refused = (reason, collection, fields, rkey) => ({ ...inside(collection, fields, rkey), rejected: reason })

// Posts come first, so that other accounts can refer to them.
export function posts(handle, count) {
  const text = (index) => `post ${index} by ${handle} \u00e9\u{1F98B}\u65e5`
  return [
    { collection: 'app.bsky.actor.profile', rkey: 'self', value: { $type: 'app.bsky.actor.profile', displayName: handle } },
    ...range(count, (index) => plain(POST, spread(index, count), { text: text(index), langs: ['en'] })),
  ]
}

// Replies, likes, reposts, follows and blocks; `pick(i)` is some post's {uri, cid}, `others` are DIDs.
export function edges(count, pick, others) {
  const half = Math.ceil(count / 2)
  return [
    ...range(half, (index) => plain(POST, spread(index, half), { text: `reply ${index}`, reply: { root: pick(index), parent: pick(index + 1) } })),
    ...range(2 * count, (index) => plain(LIKE, spread(index, 2 * count), { subject: pick(index) })),
    ...range(half, (index) => plain(REPOST, spread(index, half), { subject: pick(index) })),
    ...others.map((subject, index) => plain(FOLLOW, spread(index, others.length), { subject })),
    ...others.map((subject, index) => plain(BLOCK, spread(index, others.length), { subject })),
  ]
}

export const likes = (count, pick) => range(count, (index) => plain(LIKE, spread(index, count), { subject: pick(index) }))

// createdAt, the second in UTC that it names, its synctimestamp; null where it is no time.
const DATES = [
  ['2024-09-27T00:00:00.000Z', '2024-09-27-00:00:00', '2024-09-27-00:00:00'],
  ['2024-09-26T23:59:59.999Z', '2024-09-26-23:59:59', '2024-10-01-00:00:00'],
  ['2024-12-01T23:59:59.999Z', '2024-12-01-23:59:59', '2024-12-01-23:59:59'],
  ['2024-12-02T00:00:00.999Z', '2024-12-02-00:00:00', '2024-12-02-00:00:00'],
  ['2024-12-02T00:00:01Z', '2024-12-02-00:00:01', '2024-12-15-00:00:00'],
  ['2024-12-02T08:00:00+09:00', '2024-12-01-23:00:00', '2024-12-01-23:00:00'],
  ['2024-09-27T08:59:59+09:00', '2024-09-26-23:59:59', '2024-10-01-00:00:00'],
  ['2024-09-26T20:00:00-04:00', '2024-09-27-00:00:00', '2024-09-27-00:00:00'],
  ['2024-11-05T12:00:00.5+0530', '2024-11-05-06:30:00', '2024-11-05-06:30:00'],
  ['2024-11-05T12:00:00+99:99', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-11-05T12:00:00.123456789123Z', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-11-05T12:00:00', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-11-05t12:00:00z', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-11-05-12:00:00', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-11-05T24:00:00Z', '2024-11-05-00:00:00', '2024-11-05-00:00:00'],
  ['2024-11- 5T12:00:00Z', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-11-05T12:00:00 or so', '2024-11-05-12:00:00', '2024-11-05-12:00:00'],
  ['2024-1-5T1:2:3Z', '2024-01-05-01:02:03', '2024-01-15-00:00:00'],
  ['2024-02-29T00:00:00Z', '2024-02-29-00:00:00', '2024-03-01-00:00:00'],
  ['2023-12-31T10:00:00Z', '2023-12-31-10:00:00', '2024-01-01-00:00:00'],
  ['0001-01-01T00:00:00Z', '0001-01-01-00:00:00', '0001-01-15-00:00:00'],
  ['2124-01-16T00:00:00Z', '2124-01-16-00:00:00', '2124-02-01-00:00:00'],
  ['9999-12-31T00:00:00Z', '9999-12-31-00:00:00', '9999-12-31-00:00:00'],
  ['', null],
  ['not a date', null],
  ['2024-11-05', null],
  ['2024-11-05 12:00:00Z', null],
  ['2024-11-05T12:00', null],
  [' 2024-11-05T12:00:00Z', null],
  ['2024-11-05T23:59:60Z', null],
  ['2023-02-29T00:00:00Z', null],
  ['0000-01-01T00:00:00Z', null],
  [1730808000, null],
  [null, null],
  [undefined, null],
]

export function dated() {
  return DATES.map(([createdAt, time, synctimestamp], index) => {
    if (time && (isInside(time) ? time : bucket(time)) !== synctimestamp) throw new Error(`the table contradicts itself: ${createdAt} in ${WINDOW.start}`)
    const value = { $type: POST, text: `dated ${index}`, ...(createdAt === undefined ? {} : { createdAt }) }
    return { collection: POST, rkey: `dated-${index}`, time, value, ...(time ? {} : { rejected: 'created_at' }) }
  })
}

// Odd shapes; `target` is a post's {uri, cid}, `blob` an uploaded image's reference, `did` some other account.
export function shaped(target, blob, did) {
  const link = { $link: target.cid }
  const hard = 'quote " backslash \\ slash / tab \t line \n return \r bell \u0007 nul \u0000 del \u007f \u00e9 \u2028 \u{1F98B}'
  const facet = { index: { byteStart: 0, byteEnd: 5 }, features: [{ $type: 'app.bsky.richtext.facet#link', uri: 'https://example.com/?a=1&b=2' }] }
  const external = { uri: 'https://example.com/', title: hard, description: '' }
  const images = { $type: 'app.bsky.embed.images', images: [{ alt: hard, image: blob, aspectRatio: { width: 1, height: 1 } }] }
  const media = { $type: 'app.bsky.embed.recordWithMedia', media: images, record: { $type: 'app.bsky.embed.record', record: target } }
  const texts = [hard, '', 'x'.repeat(100_000)].map((text) => inside(POST, { text }))
  const embeds = [images, media, { $type: 'app.bsky.embed.external', external }, {}, [], null, { zz: link, a: { $bytes: '3q2+7w' }, bb: [true, false, null, -7, 9007199254740991] }]
  const langs = [['en', 'pt-BR'], [], [''], 'en', '', { zz: 1, a: 2, bb: 3 }, ['a,b', '"']]
  const labels = { $type: 'com.atproto.label.defs#selfLabels', values: [{ val: '!no-unauthenticated' }] }
  const entities = [{ type: 'mention', index: { start: 0, end: 5 }, value: did }]
  const post = (fields, rkey) => inside(POST, { text: 't', ...fields }, rkey)
  return [
    ...texts,
    ...embeds.map((embed) => post({ embed })),
    ...langs.map((value) => post({ langs: value, tags: value })),
    post({ facets: [facet], labels, entities, tags: ['one', 'two'], extra: { of: 'no interest' } }, 'a.b_c~d:e-F'),
    post({ text: 'twice' }, 'twice-1'),
    post({ text: 'twice' }, 'twice-2'),
    post({ text: 'a long key' }, 'k'.repeat(512)),
    post({ reply: { root: { ...target, extra: 1, $type: 'own.type' }, parent: { uri: target.uri, cid: link }, $type: 'app.bsky.feed.post#replyRef' } }),
    inside(LIKE, { subject: { ...target, $type: 'own.type', extra: 'dropped' }, via: target }),
    inside(REPOST, { subject: { uri: target.uri, cid: link } }),
    inside(FOLLOW, { subject: 'not a DID' }),
    refused('schema', POST, {}),
    refused('schema', POST, { text: 7 }),
    refused('schema', POST, { text: 't', reply: null }),
    refused('schema', POST, { text: 't', reply: { root: target } }),
    refused('schema', POST, { text: 't', langs: ['en', 1] }),
    refused('schema', POST, { text: 't', tags: [null] }),
    refused('schema', LIKE, { subject: { uri: target.uri } }),
    refused('schema', LIKE, { subject: target.uri }),
    refused('schema', REPOST, {}),
    refused('schema', FOLLOW, { subject: target }),
    refused('schema', BLOCK, { subject: null }),
    refused('created_at', BLOCK, { createdAt: 'never' }),
    ...['app.bsky.feed.threadgate', 'app.bsky.graph.list', 'com.example.thing'].map((collection) => inside(collection, { post: target.uri, at: { $bytes: 'AAEC' } })),
  ]
}

// A second from before the window to after it, by `random(below)`.
const someTime = (random) => new Date(FIRST_MS + random(Math.floor((LAST_MS - FIRST_MS) / 1_000)) * 1_000).toISOString()

// A new record, now and then one that is refused.
export function fresh(number, random) {
  const subject = 'did:plc:freshfreshfreshfreshfres'
  const text = `fresh ${number}`
  if (random(10) === 0) return { ...plain(POST, someTime(random), {}), rejected: 'schema' }
  return random(2) ? plain(POST, someTime(random), { text }) : plain(FOLLOW, someTime(random), { subject })
}

// The same record as its owner writes it anew: of a known kind with another time, sometimes with one that is none; of any other kind
// with a mark of its own.
export function edited(record, number, random) {
  const value = { ...record.value, edited: number }
  const isKnown = [POST, LIKE, REPOST, FOLLOW, BLOCK].includes(value.$type)
  if (!isKnown || (record.rejected && record.rejected !== 'created_at')) return { ...record, value }
  if (random(8) === 0) return { value: { ...value, createdAt: 'never' }, rejected: 'created_at' }
  const createdAt = someTime(random)
  return { value: { ...value, createdAt }, time: secondOf(createdAt) }
}
