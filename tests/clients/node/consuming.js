'use strict';
// The scenarios that consume.

const {
  ConsumeResult, FilterExpression, LitePushConsumerBuilder, PushConsumer, SimpleConsumer,
} = require('rocketmq-client-nodejs');
const { FilterType } = require('rocketmq-client-nodejs/proto/apache/rocketmq/v2/definition_pb');
const { Countdown, emit, failure, pause, sleep, state, stopped } = require('./events');
const { reached } = require('./producing');
const { report } = require('./messages');

const LONG_POLL_MS = 20_000;

function configuration(options) {
  return { ...reached(options), namespace: '', consumerGroup: options.text('group') };
}

function subscriptions(options) {
  const type = options.text('filter-type', 'tag') === 'sql' ? FilterType.SQL : FilterType.TAG;
  return new Map([ [ options.text('topic'), new FilterExpression(options.text('filter', '*'), type) ] ]);
}

async function consumeSimple(options) {
  const consumer = new SimpleConsumer({
    ...configuration(options), subscriptions: subscriptions(options), awaitDuration: LONG_POLL_MS,
  });
  await consumer.startup();
  emit('ready');
  const countdown = new Countdown(options.number('count', 0));
  const receiveUntilDone = async () => {
    while (!state.stopped) {
      let views;
      try {
        views = await consumer.receive(options.number('batch', 32), options.number('invisible', 30) * 1000);
      } catch (error) {
        emit('receive-failed', failure(error));
        await pause(100);
        continue;
      }
      // All at once: when a message was delivered must not hang on how long the acknowledgements of others take.
      views.forEach(report);
      for (const view of views) {
        await sleep(options.number('work', 0));
        await handle(consumer, options, countdown, view);
      }
    }
  };
  for (let i = 0; i < options.number('threads', 4); i++) {
    receiveUntilDone();
  }
  await stopped;
}

/** How many attempts of this message are refused. */
function nackAttempts(options, view) {
  const isChosen = Number(view.properties.get('index')) % options.number('nack-every', 1) === 0;
  return isChosen ? options.number('nack-attempts', 0) : 0;
}

async function handle(consumer, options, countdown, view) {
  const id = view.messageId;
  const began = Date.now();
  try {
    if (view.deliveryAttempt <= options.number('ignore-attempts', 0)) {
      return;
    }
    if (view.deliveryAttempt <= nackAttempts(options, view)) {
      await consumer.changeInvisibleDuration(view, options.number('nack-delay', 0) * 1000);
      emit('nacked', { id, began });
    } else {
      await consumer.ack(view);
      emit('acked', { id, began });
      countdown.one();
    }
  } catch (error) {
    emit('ack-failed', { id, began, ...failure(error) });
  }
}

function listener(options) {
  const countdown = new Countdown(options.number('count', 0));
  const tries = new Map();
  return {
    async consume(view) {
      report(view);
      const id = view.messageId;
      await sleep(options.number('work', 0));
      const refused = nackAttempts(options, view);
      if (refused > 0) {
        // The FIFO consumers of some clients try again by themselves, and the attempt stays what the broker said.
        tries.set(id, (tries.get(id) ?? 0) + 1);
        if (Math.max(tries.get(id), view.deliveryAttempt) <= refused) {
          emit('nacked', { id });
          return ConsumeResult.FAILURE;
        }
      }
      emit('consumed', { id });
      countdown.one();
      return ConsumeResult.SUCCESS;
    },
  };
}

async function consumePush(options) {
  const consumer = new PushConsumer({
    ...configuration(options), subscriptions: subscriptions(options), messageListener: listener(options),
  });
  await consumer.startup();
  await linger(options);
}

async function consumeLite(options) {
  const consumer = await new LitePushConsumerBuilder()
    .setClientConfiguration(configuration(options))
    .setConsumerGroup(options.text('group'))
    .bindTopic(options.text('topic'))
    .setMessageListener(listener(options))
    .build();
  for (const lite of options.text('lite-topics').split(',')) {
    try {
      await consumer.subscribeLite(lite);
      emit('subscribed', { lite });
    } catch (error) {
      emit('subscribe-failed', { lite, ...failure(error) });
    }
  }
  await linger(options);
}

async function linger(options) {
  emit('ready');
  await stopped;
  await sleep(options.number('linger', 2) * 1000); // the client acknowledges after the listener returns
}

module.exports = { consumeLite, consumePush, consumeSimple };
