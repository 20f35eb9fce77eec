'use strict';
// The scenarios that send.

const { Producer } = require('rocketmq-client-nodejs');
const { TransactionResolution } = require('rocketmq-client-nodejs/proto/apache/rocketmq/v2/definition_pb');
const { emit, failure, pause, state, stopped } = require('./events');
const { kindOf, messageOf } = require('./messages');

const RETRY_PAUSE_MS = 50;
const RESOLUTIONS = {
  commit: TransactionResolution.COMMIT,
  rollback: TransactionResolution.ROLLBACK,
  unknown: TransactionResolution.TRANSACTION_RESOLUTION_UNSPECIFIED,
};

/** What clients of each kind are told: where the servers are, and in whose name to call. */
function reached(options) {
  const keys = { accessKey: options.text('access-key', ''), accessSecret: options.text('secret-key', '') };
  return { endpoints: options.text('endpoint'), ...(keys.accessKey && { sessionCredentials: keys }) };
}

async function startedProducer(options, more = {}) {
  const producer = new Producer({ ...reached(options), topic: options.text('topic'), ...more });
  await producer.startup();
  emit('ready');
  return producer;
}

async function produce(options) {
  const producer = await startedProducer(options);
  await sendAll(options, index => sendOne(producer, options, index));
  if (!state.stopped) { // amid a crash the shutdown of a client can take for ever
    await producer.shutdown();
  }
}

/** Calls `send` with each index, in several loops. A message group, or a lite topic, belongs to one loop. */
async function sendAll(options, send) {
  const limit = options.number('count', 0) || Infinity;
  const lanes = options.number('group-count', 0) || options.number('lite-count', 0);
  const threads = options.number('threads', 4);
  let shared = 0;
  const loop = async thread => {
    let own = -1;
    const next = () => {
      if (!lanes) {
        return shared++;
      }
      do {
        own++;
      } while (own % lanes % threads !== thread);
      return own;
    };
    for (let index = next(); index < limit && !state.stopped; index = next()) {
      await send(index);
      await pause(options.number('pause', 0));
    }
  };
  const count = lanes ? Math.min(threads, lanes) : threads;
  await Promise.all(Array.from({ length: count }, (_, thread) => loop(thread)));
}

/**
 * Sends the message of `index` until it is acknowledged; undefined when the driver was stopped before. Each call of the
 * client's `send` makes a new message id.
 */
async function sendOne(producer, options, index) {
  for (;;) {
    const kind = kindOf(options, index);
    const began = Date.now();
    try {
      const receipt = await producer.send(messageOf(options, index, kind));
      const handle = receipt.recallHandle || undefined;
      emit('sent', { index, id: receipt.messageId, began, ...kind, handle });
      return receipt;
    } catch (error) {
      emit('failed', { index, began, ...kind, ...failure(error) });
    }
    if (await pause(RETRY_PAUSE_MS)) {
      return undefined;
    }
  }
}

function decisionOf(options, index) {
  const pattern = options.text('decide', 'commit').split(',');
  return pattern[index % pattern.length];
}

async function transaction(options) {
  const check = async view => {
    const index = Number(view.properties.get('index'));
    let decision = decisionOf(options, index);
    if (decision === 'unknown') {
      decision = options.text('check-decide', 'commit');
    }
    emit('checked', { index, id: view.messageId, decision });
    return RESOLUTIONS[decision];
  };
  const producer = await startedProducer(options, { checker: { check } });
  await sendAll(options, index => sendHalf(producer, options, index));
  if (options.has('linger')) {
    await pause(options.number('linger') * 1000);
  } else {
    await stopped;
  }
}

/** Sends the half message of `index` until it is acknowledged, and ends its transaction, once. */
async function sendHalf(producer, options, index) {
  const decision = decisionOf(options, index);
  for (;;) {
    const began = Date.now();
    try {
      const begun = producer.beginTransaction();
      const receipt = await producer.send(messageOf(options, index, {}), begun);
      emit('sent', { index, id: receipt.messageId, began, decision });
      await end(begun, decision, { index, id: receipt.messageId, decision, began: Date.now() });
      return;
    } catch (error) {
      emit('failed', { index, began, ...failure(error) });
    }
    if (await pause(RETRY_PAUSE_MS)) {
      return;
    }
  }
}

async function end(begun, decision, fields) {
  if (decision === 'unknown') {
    return;
  }
  try {
    await (decision === 'commit' ? begun.commit() : begun.rollback());
    emit('ended', fields);
  } catch (error) {
    emit('end-failed', { ...fields, ...failure(error) });
  }
}

async function recall(options) {
  options.setDefault('delay', '60000');
  const producer = await startedProducer(options);
  await sendAll(options, async index => {
    const receipt = await sendOne(producer, options, index);
    if (!receipt || await pause(options.number('recall-wait', 0))) {
      return;
    }
    for (let i = 0; i <= options.number('recall-twice', 0); i++) {
      const fields = { index, began: Date.now() };
      try {
        const recalled = await producer.recallMessage(options.text('topic'), receipt.recallHandle);
        emit('recalled', { ...fields, id: recalled.messageId, outcome: 'accepted' });
      } catch (error) {
        emit('recalled', { ...fields, id: receipt.messageId, outcome: 'refused', ...failure(error) });
      }
    }
  });
}

module.exports = { produce, reached, recall, transaction };
