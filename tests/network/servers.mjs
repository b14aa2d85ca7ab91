// Servers: a PLC directory and two PDSes, the real ones from npm, each on a free port of 127.0.0.1.
//
// A socket is bound before its server exists and handed to it then: no port is guessed and none is taken twice.
// The directory's npm release is from 2023 and writes DID documents in their old form. Documents are therefore answered here,
// from its real operation log, in the form that plc.directory serves today; for the DIDs in `legacy` it answers itself. Its
// `/export` is its own, over the operations that its memory holds. What each server has answered is counted by status.

import { createRequire } from 'node:module'
import { once } from 'node:events'
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import http from 'node:http'
import path from 'node:path'

const require = createRequire(import.meta.url)
const { PDS, envToCfg, envToSecrets } = require('@atproto/pds')
const { PlcServer, MockDatabase } = require('@did-plc/server')

const ADMIN_PASSWORD = 'admin-pass'
const BYPASS = 'bypass-key'
const CONTEXT = ['https://www.w3.org/ns/did/v1', 'https://w3id.org/security/multikey/v1', 'https://w3id.org/security/suites/secp256k1-2019/v1']

async function bind() {
  const server = http.createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, port: server.address().port }
}

// `app` will listen on `server`; requests that `first` answers never reach it. Gives its answers by status, while they come.
function settle(app, server, first = async () => false) {
  const answers = {}
  const answer = async (request, response) => {
    response.on('finish', () => (answers[response.statusCode] = (answers[response.statusCode] ?? 0) + 1))
    return (await first(request, response)) || app(request, response)
  }
  app.listen = () => {
    server.on('request', (request, response) => answer(request, response).catch((error) => response.destroy(error)))
    setImmediate(() => server.emit('listening'))
    return server
  }
  return answers
}

// { url, legacy, stop }: the directory; DIDs in the set `legacy` get the npm release's own answers.
export async function startDirectory() {
  const { server, port } = await bind()
  const db = new MockDatabase()
  // The release gives an empty page where it runs in memory.
  db.exportOps = async (count, after) => {
    const all = Object.values(db.contents).flat().filter(({ createdAt }) => !after || createdAt > after)
    return all.sort((a, b) => a.createdAt - b.createdAt).slice(0, count).map((entry) => ({ ...entry, cid: entry.cid.toString() }))
  }
  const directory = PlcServer.create({ db, port })
  const legacy = new Set()
  const asked = {}
  const answers = settle(directory.app, server, async (request, response) => {
    const did = decodeURIComponent(request.url.slice(1))
    if (request.method === 'GET' && did.startsWith('did:plc:')) asked[did] = (asked[did] ?? 0) + 1
    const operation = request.method === 'GET' && /^did:plc:[^/]+$/.test(did) && !legacy.has(did) && (await db.lastOpForDid(did))
    if (!operation) return false
    const isGone = operation.type === 'plc_tombstone'
    response.writeHead(isGone ? 410 : 200, { 'content-type': isGone ? 'application/json; charset=utf-8' : 'application/did+ld+json; charset=utf-8' })
    response.end(JSON.stringify(isGone ? { message: `DID not available: ${did}` } : document(did, operation)))
    return true
  })
  await directory.start()
  return { url: `http://127.0.0.1:${port}`, legacy, asked, answers, stop: () => directory.destroy() }
}

function document(did, operation) {
  const keys = Object.entries(operation.verificationMethods)
  const services = Object.entries(operation.services)
  return {
    '@context': CONTEXT,
    id: did,
    alsoKnownAs: operation.alsoKnownAs,
    verificationMethod: keys.map(([name, key]) => ({ id: `${did}#${name}`, type: 'Multikey', controller: did, publicKeyMultibase: key.slice('did:key:'.length) })),
    service: services.map(([name, { type, endpoint }]) => ({ id: `#${name}`, type, serviceEndpoint: endpoint })),
  }
}

// A running PDS. Its own name is `localhost`, because it announces plain http for that name only.
export class Host {
  static async start(name, directoryUrl, folder, rateLimitsEnabled) {
    const { server, port } = await bind()
    const dataDirectory = path.join(folder, name)
    fs.mkdirSync(dataDirectory)
    const settings = {
      port,
      hostname: 'localhost',
      serviceDid: `did:web:localhost%3A${port}`,
      dataDirectory,
      blobstoreDiskLocation: path.join(dataDirectory, 'blobs'),
      didPlcUrl: directoryUrl,
      serviceHandleDomains: ['.test'],
      inviteRequired: false,
      devMode: true,
      disableSsrfProtection: true,
      rateLimitsEnabled,
      rateLimitBypassKey: BYPASS,
      adminPassword: ADMIN_PASSWORD,
      jwtSecret: randomBytes(16).toString('hex'),
      plcRotationKeyK256PrivateKeyHex: randomBytes(32).toString('hex'),
      crawlers: [],
    }
    const pds = await PDS.create(envToCfg(settings), envToSecrets(settings))
    const answers = settle(pds.app, server)
    await pds.start()
    return Object.assign(new Host(pds, name, port, settings.serviceDid), { answers })
  }

  constructor(pds, name, port, did) {
    Object.assign(this, { pds, name, did, url: `http://127.0.0.1:${port}`, endpoint: `http://localhost:${port}` })
    this.plc = pds.ctx.plcClient
    this.rotationKey = pds.ctx.plcRotationKey
    this.admin = `Basic ${Buffer.from(`admin:${ADMIN_PASSWORD}`).toString('base64')}`
  }

  stop() {
    return this.pds.destroy()
  }

  async get(method, query, auth) {
    return this.#call(`${method}?${new URLSearchParams(query)}`, { headers: headers(auth) })
  }

  async post(method, body, auth, type = 'application/json') {
    const sent = type === 'application/json' ? JSON.stringify(body) : body
    return this.#call(method, { method: 'POST', headers: { ...headers(auth), 'content-type': type }, body: sent })
  }

  async #call(target, request) {
    const response = await fetch(`${this.url}/xrpc/${target}`, request)
    if (!response.ok) throw new Error(`${target}: ${response.status} ${await response.text()}`)
    const isJson = (response.headers.get('content-type') ?? '').includes('json')
    return isJson ? response.json() : new Uint8Array(await response.arrayBuffer())
  }
}

const headers = (auth) => ({ 'x-ratelimit-bypass': BYPASS, ...(auth ? { authorization: auth } : {}) })
