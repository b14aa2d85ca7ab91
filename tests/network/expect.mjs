// Expect: what skyfill must make of a seeded record, worked out from the rules alone and without skyfill's code.
//
// A record is seeded together with its fate: `time` is the UTC second that its createdAt names (`YYYY-MM-DD-HH:MM:SS`), or
// `rejected` is the reason why it must be refused. From that follow verdict, queue, and every field of its row but `rev`.

export const WINDOW = { start: '2024-09-27-00:00:00', end: '2024-12-02-00:00:00' }

const KINDS = {
  'app.bsky.feed.post': 'post',
  'app.bsky.feed.repost': 'repost',
  'app.bsky.feed.like': 'like',
  'app.bsky.graph.follow': 'follow',
  'app.bsky.graph.block': 'block',
}

// The second that a plain `...Z` text names.
export const secondOf = (iso) => `${iso.slice(0, 10)}-${iso.slice(11, 19)}`

export const isInside = (second) => WINDOW.start <= second && second <= WINDOW.end

// Outside the window: up to day 15 the 15th, else the 1st of the next month; past the year 9999 it stays as it is.
export function bucket(second) {
  const [year, month, day] = second.slice(0, 10).split('-').map(Number)
  const pad = (number, digits) => String(number).padStart(digits, '0')
  if (day <= 15) return `${second.slice(0, 8)}15-00:00:00`
  const next = month === 12 ? [year + 1, 1] : [year, month + 1]
  return next[0] > 9999 ? second : `${pad(next[0], 4)}-${pad(next[1], 2)}-01-00:00:00`
}

// { verdict, queue, reason, inside, row } of one record; `row` has every field but `rev`, in the order that readers know.
export function expectation({ did, key, cid, value, time, rejected }) {
  const [collection, rkey] = key.split('/')
  const origin = { did, uri: `at://${did}/${key}`, cid }
  if (rejected) return { verdict: 'rejected', queue: 'rejected', reason: rejected, row: { ...origin, collection, rkey, reason: rejected, record: value, raw: null } }
  const nsid = value.$type
  if (!KINDS[nsid]) return { verdict: 'skipped', reason: 'type' }
  const kind = nsid === 'app.bsky.feed.post' && 'reply' in value ? 'reply' : KINDS[nsid]
  const inside = isInside(time)
  const ending = { record_type: kind, synctimestamp: inside ? time : bucket(time), ...origin }
  const edge = () => ({ createdAt: value.createdAt, subject: subjectText(value.subject), py_type: nsid, ...ending })
  return { verdict: 'exported', queue: kind, inside, row: KINDS[nsid] === 'post' ? { ...post(value, kind), ...ending } : edge() }
}

function post(value, kind) {
  return {
    py_type: value.$type,
    createdAt: value.createdAt,
    text: value.text,
    embed: pythonOrNull(value.embed),
    entities: pythonOrNull(value.entities),
    facets: pythonOrNull(value.facets),
    reply: kind === 'reply' ? replyText(value.reply) : null,
    labels: pythonOrNull(value.labels),
    langs: joined(value.langs),
    tags: joined(value.tags),
  }
}

const subjectText = (subject) => (typeof subject === 'string' ? subject : strongRef(subject))

// Keys in this order, not in the block's; extra keys are dropped.
function strongRef(ref) {
  const cid = ref.cid.$link ?? ref.cid
  return `{"cid": ${python(cid)}, "uri": ${python(ref.uri)}, "py_type": ${python(ref.$type ?? 'com.atproto.repo.strongRef')}}`
}

const replyText = (reply) =>
  `{"parent": ${strongRef(reply.parent)}, "root": ${strongRef(reply.root)}, "py_type": ${python(reply.$type ?? 'app.bsky.feed.defs#replyRef')}}`

// What Python takes for false.
const isFalsy = (value) =>
  value == null || value === false || value === 0 || value === '' || value.$bytes === '' || (typeof value === 'object' && Object.keys(value).length === 0)

const pythonOrNull = (value) => (isFalsy(value) ? null : python(value))

function joined(value) {
  if (isFalsy(value)) return null
  if (typeof value === 'string') return [...value].join(',')
  return Array.isArray(value) ? value.join(',') : inBlockOrder(value).join(',')
}

// Keys as DAG-CBOR orders them in the block: by length in bytes, then by bytes.
const inBlockOrder = (map) =>
  Object.keys(map).sort((one, other) => Buffer.byteLength(one) - Buffer.byteLength(other) || Buffer.compare(Buffer.from(one), Buffer.from(other)))

// A value as Python's json.dumps writes it.
export function python(value) {
  if (typeof value === 'string') return pythonString(value)
  if (value === null || typeof value !== 'object') return String(value)
  if (Array.isArray(value)) return `[${value.map(python).join(', ')}]`
  if (typeof value.$link === 'string') return pythonString(value.$link)
  return `{${inBlockOrder(value).map((key) => `${pythonString(key)}: ${python(value[key])}`).join(', ')}}`
}

const SHORT = { '"': '\\"', '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t', '\b': '\\b', '\f': '\\f' }

function pythonString(text) {
  const units = Array.from({ length: text.length }, (_, at) => text[at])
  const escaped = (unit) => SHORT[unit] ?? (unit >= ' ' && unit <= '~' ? unit : `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
  return `"${units.map(escaped).join('')}"`
}
