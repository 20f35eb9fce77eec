'use strict';
// What is sent follows from a seed and an index alone, so that a test can say what must arrive.

const { createHash } = require('node:crypto');
const { emit } = require('./events');

const COLOURS = [ 'red', 'green', 'blue' ];

function sha256(...parts) {
  const hash = createHash('sha256');
  parts.forEach(part => hash.update(part));
  return hash.digest();
}

/** SHA-256 in counter mode over `seed:index`; the length follows from the same hash unless `size` is given. */
function bodyOf(seed, index, size) {
  const root = sha256(`${seed}:${index}`);
  const length = size || 1 + root.readUInt16BE(0) % 2048;
  const blocks = [];
  for (let n = 0; n * 32 < length; n++) {
    const counter = Buffer.alloc(4);
    counter.writeUInt32BE(n);
    blocks.push(sha256(root, counter));
  }
  return Buffer.concat(blocks).subarray(0, length);
}

/** What makes message `index` more than a normal one. */
function kindOf(options, index) {
  const kind = {};
  const groups = options.number('group-count', 0);
  const lites = options.number('lite-count', 0);
  const priorities = options.number('priority', 0);
  const delay = options.number('delay', 0);
  const spread = options.number('delay-spread', 0);
  if (groups) {
    kind.group = `g${index % groups}`;
    kind.seq = Math.floor(index / groups);
  }
  if (lites) {
    kind.lite = `l${index % lites}`;
    kind.seq = Math.floor(index / lites);
  }
  if (priorities) {
    kind.priority = 1 + index % priorities; // this client takes 0 for none
  }
  if (delay || spread) {
    kind.due = Date.now() + delay + (spread ? index * 7919 % spread : 0);
  }
  return kind;
}

function messageOf(options, index, kind) {
  const seed = options.text('seed', 'seed');
  const properties = new Map([ [ 'index', `${index}` ], [ 'text', `größe ${index} 漢字 🚀` ] ]);
  if (kind.seq !== undefined) {
    properties.set('seq', `${kind.seq}`);
  }
  return {
    topic: options.text('topic'),
    body: bodyOf(seed, index, options.number('size', 0)),
    tag: COLOURS[index % 3],
    keys: [ `key-${seed}-${index}`, `seventh-${index % 7}` ],
    properties,
    messageGroup: kind.group,
    liteTopic: kind.lite,
    priority: kind.priority,
    deliveryTimestamp: kind.due === undefined ? undefined : new Date(kind.due),
  };
}

function report(view) {
  const seq = view.properties.get('seq');
  // What is not set reads as '' or 0 in this client.
  emit('message', {
    id: view.messageId,
    topic: view.topic,
    tag: view.tag || null,
    keys: [ ...view.keys ].sort(),
    properties: Object.fromEntries(view.properties),
    sha256: sha256(view.body).toString('hex'),
    length: view.body.length,
    attempt: view.deliveryAttempt,
    born: view.bornTimestamp ? view.bornTimestamp.getTime() : 0,
    corrupted: Boolean(view.corrupted),
    group: view.messageGroup || null,
    seq: seq === undefined ? null : Number(seq),
    due: view.deliveryTimestamp ? view.deliveryTimestamp.getTime() : null,
    priority: view.priority || null,
    lite: view.liteTopic || null,
  });
}

module.exports = { kindOf, messageOf, report };
