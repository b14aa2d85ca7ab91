// Net: starts the network, seeds its accounts, writes net.json, serves until told to stop.
//
//   OUT=net.json node net.mjs     prints one line of JSON when net.json is complete; stops on TERM, INT, HUP
//   `move` on stdin               moves x-moving, so far deactivated, to the other host; net.json and one line follow again
//   `edit` on stdin               200 random edits through the accounts' own API; net.json and one line follow again
//   `count` on stdin              writes net.json anew: what was answered and asked for so far
//   EXIT_ON_EOF=1                 stops also when stdin closes, so that no test can leave it behind
//   DATA_DIR=folder               where the servers keep their files; they are removed at the end
//
// net.json: { plc, hosts, window, answers: { a, b, plc: by status }, asked: { did: documents }, accounts: [{ name, did, handle, endpoint, end, reason, rev, commit, records }] }, each record
// as { key, value, cid, verdict, queue, reason, inside, row } of expect.mjs. `end` is done or parked; only done accounts have
// records, because nothing of the others may be exported.

import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'
import { WINDOW, expectation } from './expect.mjs'
import { POST, dated, edges, edited, fresh, likes, posts, shaped } from './records.mjs'
import { Host, startDirectory } from './servers.mjs'

const OUT = process.env.OUT ?? path.join(import.meta.dirname, 'net.json')
// Posts of an ordinary account; it has twice as many likes, half as many replies and reposts.
const SCALE = 40
// More rows of one type than a queue item holds by default (1,000).
const MANY = 1_150
const PNG = Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==', 'base64')
// Edits of one `edit`.
const EDITS = 200
// An applyWrites call takes at most 200 writes and 150 kB.
const WRITES_MAX = 200
const WRITES_BYTES_MAX = 120_000

const begun = Date.now()
fs.rmSync(OUT, { force: true })
const folder = fs.mkdtempSync(path.join(process.env.DATA_DIR ?? import.meta.dirname, 'data-'))
process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }))

const directory = await startDirectory()
const A = await Host.start('a', directory.url, folder, false)
const B = await Host.start('b', directory.url, folder, true) // sends RateLimit headers

let stopping = false
async function stop() {
  if (stopping) return
  stopping = true
  for (const server of [A, B, directory]) await server.stop().catch((error) => console.error(error))
  process.exit(0)
}
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, stop)

class Account {
  // `records` maps key to { key, value, cid, time, rejected }: what the repository holds now.
  static async create(host, name) {
    const handle = `${name}.test`
    const { did, accessJwt } = await host.post('com.atproto.server.createAccount', { handle, email: `${name}@example.com`, password: 'hunter2' })
    return Object.assign(new Account(), { host, name, handle, did, auth: `Bearer ${accessJwt}`, records: new Map(), end: 'done' })
  }

  posts() {
    const all = [...this.records.values()].filter((record) => record.key.startsWith(`${POST}/`))
    return all.map(({ key, cid }) => ({ uri: `at://${this.did}/${key}`, cid }))
  }

  async apply(writes) {
    const { results } = await this.host.post('com.atproto.repo.applyWrites', { repo: this.did, validate: false, writes }, this.auth)
    return results
  }

  async create(records) {
    for (const chunk of chunks(records.map((record) => ({ rkey: nextTid(), ...defined(record) })))) {
      const results = await this.apply(chunk.map(({ collection, rkey, value }) => ({ $type: 'com.atproto.repo.applyWrites#create', collection, rkey, value })))
      chunk.forEach(({ collection, rkey, ...record }, index) => this.#keep(`${collection}/${rkey}`, record, results[index].cid))
    }
  }

  async update(key, value) {
    const [collection, rkey] = key.split('/')
    const [{ cid }] = await this.apply([{ $type: 'com.atproto.repo.applyWrites#update', collection, rkey, value }])
    this.#keep(key, { ...this.records.get(key), value }, cid)
  }

  async delete(key) {
    const [collection, rkey] = key.split('/')
    await this.apply([{ $type: 'com.atproto.repo.applyWrites#delete', collection, rkey }])
    this.records.delete(key)
  }

  // The three calls that clients make.
  async createRecord({ collection, ...record }) {
    const { uri, cid } = await this.host.post('com.atproto.repo.createRecord', { repo: this.did, collection, validate: false, record: record.value }, this.auth)
    this.#keep(uri.split('/').slice(3).join('/'), record, cid)
  }

  async putRecord(key, record) {
    const [collection, rkey] = key.split('/')
    const { cid } = await this.host.post('com.atproto.repo.putRecord', { repo: this.did, collection, rkey, validate: false, record: record.value }, this.auth)
    this.#keep(key, record, cid)
  }

  async deleteRecord(key) {
    const [collection, rkey] = key.split('/')
    await this.host.post('com.atproto.repo.deleteRecord', { repo: this.did, collection, rkey }, this.auth)
    this.records.delete(key)
  }

  #keep(key, record, cid) {
    this.records.set(key, { ...record, key, cid })
  }

  async summary() {
    const { name, did, handle, end, reason, host } = this
    const account = { name, did, handle, end, reason, endpoint: host?.endpoint, records: [] }
    if (end !== 'done') return account
    const { rev, cid: commit } = this.signed ?? (await host.get('com.atproto.sync.getLatestCommit', { did }))
    const records = [...this.records.values()].map((record) => ({ key: record.key, cid: record.cid, value: record.value, ...expectation({ did, ...record }) }))
    return { ...account, rev, commit, records }
  }
}

const defined = (record) => Object.fromEntries(Object.entries(record).filter(([, value]) => value !== undefined))

function* chunks(records) {
  let chunk = []
  let bytes = 0
  for (const record of records) {
    const size = JSON.stringify(record).length + 100
    if (chunk.length === WRITES_MAX || (chunk.length && bytes + size > WRITES_BYTES_MAX)) {
      yield chunk
      chunk = []
      bytes = 0
    }
    chunk.push(record)
    bytes += size
  }
  if (chunk.length) yield chunk
}

// Record keys as clients make them: 53 bits of microseconds, 10 bits of clock id; ascending within a run.
let lastTid = BigInt(begun) * 1000n
function nextTid() {
  const digits = '234567abcdefghijklmnopqrstuvwxyz'
  lastTid += 1n
  const number = lastTid << 10n
  return Array.from({ length: 13 }, (_, place) => digits[Number((number >> BigInt(5 * (12 - place))) & 31n)]).join('')
}

const parked = (reason, fields) => Object.assign(new Account(), fields, { end: 'parked', reason })

async function ordinary() {
  const users = []
  for (let index = 0; index < 5; index++) users.push(await Account.create(index % 2 ? B : A, `user${index}`))
  users.push(await Account.create(A, 'x-migrated'))
  for (const user of users) await user.create(posts(user.handle, SCALE))
  for (const user of users) {
    const others = users.filter((other) => other !== user)
    const targets = others.map((other) => other.posts())
    const pick = (index) => targets[index % targets.length][index % SCALE]
    await user.create(edges(SCALE, pick, others.map((other) => other.did)))
  }
  return users
}

// What is odd about records, on a host of each kind; and what was written and then changed or deleted.
async function oddities([first, second, , , , migrated]) {
  for (const user of [first, second]) {
    const { blob } = await user.host.post('com.atproto.repo.uploadBlob', PNG, user.auth, 'image/png')
    await user.create(shaped(migrated.posts()[0], blob, migrated.did))
    await user.create(dated())
  }
  const [changed, ...deleted] = [...first.records.values()].filter(({ value }) => String(value.text).startsWith('post ')).slice(0, 6)
  await first.update(changed.key, { ...changed.value, text: 'changed' })
  for (const { key } of deleted) await first.delete(key)
}

// Moves `account` from A to B as its owner would: service auth, the CAR, and a directory operation. Until its first write
// there, B serves the imported commit as it is: signed with the key that the account had at A.
async function migrate(account) {
  const { did, handle, name } = account
  const { token } = await A.get('com.atproto.server.getServiceAuth', { aud: B.did, lxm: 'com.atproto.server.createAccount' }, account.auth)
  const { accessJwt } = await B.post('com.atproto.server.createAccount', { did, handle, email: `${name}@example.org`, password: 'hunter2' }, `Bearer ${token}`)
  const auth = `Bearer ${accessJwt}`
  await B.post('com.atproto.repo.importRepo', await A.get('com.atproto.sync.getRepo', { did }), auth, 'application/vnd.ipld.car')
  const credentials = await B.get('com.atproto.identity.getRecommendedDidCredentials', {}, auth)
  await A.plc.updateData(did, A.rotationKey, (last) => ({ ...last, ...credentials }))
  await B.post('com.atproto.server.activateAccount', undefined, auth)
  await A.post('com.atproto.server.deactivateAccount', {}, account.auth)
  Object.assign(account, { host: B, auth })
}

const firstWriteAfterMove = (account) => account.create(posts(account.handle, 1).slice(1))

async function takeDown({ host, did }, applied) {
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did }
  await host.post('com.atproto.admin.updateSubjectStatus', { subject, takedown: { applied, ref: 'test' } }, host.admin)
}

// Accounts with a few posts of which nothing may be exported.
async function withdrawn() {
  const make = async (name, reason) => {
    const account = Object.assign(await Account.create(A, name), { end: 'parked', reason })
    await account.create(posts(account.handle, 3))
    return account
  }
  const takendown = await make('x-takendown', 'repo_taken_down')
  await takeDown(takendown, true)
  const deactivated = await make('x-deactivated', 'repo_deactivated')
  await A.post('com.atproto.server.deactivateAccount', {}, deactivated.auth)
  const deleted = await make('x-deleted', 'repo_not_found')
  const tombstoned = [await make('x-tombstoned-410', 'did_tombstoned'), await make('x-tombstoned-404', 'did_tombstoned')]
  for (const { did } of [deleted, ...tombstoned]) await A.post('com.atproto.admin.deleteAccount', { did }, A.admin)
  for (const { did } of tombstoned) await A.plc.tombstone(did, A.rotationKey)
  directory.legacy.add(tombstoned[1].did)
  return [takendown, deactivated, deleted, ...tombstoned]
}

// Accounts that only the directory knows, or not even that.
async function unhosted() {
  const key = A.rotationKey
  const register = (name, pds) => A.plc.createDid({ signingKey: key.did(), handle: `${name}.test`, pds, rotationKeys: [key.did()], signer: key })
  const without = await register('x-no-pds', A.endpoint)
  await A.plc.updateData(without, key, (last) => ({ ...last, services: {} }))
  const forbidden = await register('x-private', 'https://10.11.12.13')
  return [
    parked('no_pds', { name: 'x-no-pds', did: without }),
    parked('endpoint_forbidden', { name: 'x-private', did: forbidden }),
    parked('did_not_found', { name: 'x-unregistered', did: 'did:plc:unregisteredaaaaaaaaaaaa' }),
    parked('did_invalid', { name: 'x-malformed', did: 'did:plc:TOO-SHORT' }),
  ]
}

// An account that moved and has not written since: its new host serves the commit that its old one signed, with a key that
// only the directory's log still knows.
async function silent() {
  const account = await Account.create(A, 'x-moved-silent')
  await account.create(posts(account.handle, 3))
  account.signed = await A.get('com.atproto.sync.getLatestCommit', { did: account.did })
  await migrate(account)
  return account
}

// Accounts that came back, that hold nothing, that hold much.
async function others(target) {
  const returned = await Account.create(B, 'x-returned')
  await returned.create(posts(returned.handle, 3))
  await takeDown(returned, true)
  await takeDown(returned, false)
  await B.post('com.atproto.server.deactivateAccount', {}, returned.auth)
  await B.post('com.atproto.server.activateAccount', undefined, returned.auth)
  const many = await Account.create(A, 'x-many')
  await many.create(likes(MANY, () => target))
  return [returned, many, await Account.create(A, 'x-empty'), await silent()]
}

// An account that its owner deactivated in order to move: parked now, done once it has moved.
async function departing() {
  const account = Object.assign(await Account.create(A, 'x-moving'), { end: 'parked', reason: 'repo_deactivated' })
  await account.create(posts(account.handle, SCALE))
  await A.post('com.atproto.server.deactivateAccount', {}, account.auth)
  return account
}

async function arrive(account) {
  await A.post('com.atproto.server.activateAccount', undefined, account.auth)
  await migrate(account)
  await firstWriteAfterMove(account)
  Object.assign(account, { end: 'done', reason: undefined })
}

// Random edits, the same ones for the same records: creations, changes (also into and out of what is refused) and deletions. An account
// that moved and has not written since stays as it is.
async function edit(accounts) {
  let state = 20_241_127
  const random = (below) => ((state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0) >>> 8) % below
  const writers = accounts.filter((account) => account.end === 'done' && !account.signed)
  const counts = { created: 0, changed: 0, deleted: 0 }
  for (let number = 0; number < EDITS; number++) {
    const account = writers[random(writers.length)]
    const keys = [...account.records.keys()]
    const key = keys[random(Math.max(keys.length, 1))]
    const kind = key ? ['created', 'changed', 'deleted'][random(3)] : 'created'
    if (kind === 'created') await account.createRecord(fresh(number, random))
    else if (kind === 'changed') await account.putRecord(key, edited(account.records.get(key), number, random))
    else await account.deleteRecord(key)
    counts[kind]++
  }
  return counts
}

async function seed() {
  const users = await ordinary()
  await oddities(users)
  await migrate(users.at(-1))
  await firstWriteAfterMove(users.at(-1))
  directory.legacy.add(users[3].did).add(users[4].did)
  return [...users, ...(await withdrawn()), ...(await unhosted()), ...(await others(users[1].posts()[0]))]
}

async function report(accounts, fields) {
  const summaries = []
  for (const account of accounts) summaries.push(await account.summary())
  const net = { plc: directory.url, hosts: [A.endpoint, B.endpoint], window: WINDOW, answers: { a: A.answers, b: B.answers, plc: directory.answers }, asked: directory.asked, accounts: summaries }
  fs.writeFileSync(`${OUT}.tmp`, JSON.stringify(net))
  fs.renameSync(`${OUT}.tmp`, OUT)
  const records = summaries.reduce((sum, account) => sum + account.records.length, 0)
  console.log(JSON.stringify({ ready: OUT, accounts: summaries.length, records, ...fields }))
}

async function begin() {
  const started = Date.now()
  const moving = await departing()
  const accounts = [...(await seed()), moving]
  await report(accounts, { milliseconds: { start: started - begun, seed: Date.now() - started } })
  return { accounts, moving }
}

async function obey(order, net) {
  const { accounts, moving } = net
  if (order === 'move' && moving.end !== 'done') {
    await arrive(moving)
    await report(accounts, { moved: moving.did })
  }
  if (order === 'edit') await report(accounts, { edited: await edit(accounts) })
  if (order === 'count') await report(accounts, { counted: true })
  return net
}

// Steps one after the other; one that fails because the servers are being stopped is no failure.
let work = begin()
const failed = (error) => {
  if (stopping) return
  console.error(error)
  process.exit(1)
}
const orders = readline.createInterface({ input: process.stdin })
orders.on('line', (order) => {
  work = work.then((net) => obey(order, net))
  work.catch(failed)
})
orders.on('close', () => process.env.EXIT_ON_EOF && stop())
work.catch(failed)
