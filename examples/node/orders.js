'use strict';
// Sends five orders and ships them: node orders.js 127.0.0.1:8081

const { ConsumeResult, FilterExpression, Producer, PushConsumer } = require('rocketmq-client-nodejs');

const TOPIC = 'orders';
const GROUP = 'shipping';
const COUNT = 5;

async function main(endpoints) {
  const shipped = new Set();
  let done;
  const allShipped = new Promise(resolve => {
    done = resolve;
  });
  // Called once for each message; again, later, for one that was not a SUCCESS.
  const messageListener = {
    async consume(message) {
      console.log(`shipping ${message.body}, attempt ${message.deliveryAttempt}`);
      shipped.add(message.messageId);
      if (shipped.size >= COUNT) {
        done();
      }
      return ConsumeResult.SUCCESS;
    },
  };
  const subscriptions = new Map([ [ TOPIC, new FilterExpression('*') ] ]);
  const consumer = new PushConsumer({ endpoints, namespace: '', consumerGroup: GROUP, subscriptions, messageListener });
  await consumer.startup();
  const producer = new Producer({ endpoints, namespace: '', topic: TOPIC });
  await producer.startup();

  const sent = [];
  for (let number = 1; number <= COUNT; number++) {
    const body = Buffer.from(`order ${number}`);
    // Resolves when the message is on disk; an error means that it may or may not be there.
    const receipt = await producer.send({ topic: TOPIC, tag: 'books', keys: [ `order-${number}` ], body });
    sent.push(receipt.messageId);
  }
  const late = setTimeout(() => {
    console.error('not all orders came back within a minute');
    process.exit(1);
  }, 60_000);
  await allShipped;
  clearTimeout(late);
  if (!sent.every(id => shipped.has(id))) {
    throw new Error('other orders came back than were sent');
  }
  console.log('all orders are shipped');
  await producer.shutdown();
  await consumer.shutdown();
}

main(process.argv[2]).then(
  () => process.exit(0),
  error => {
    console.error(error);
    process.exit(1);
  },
);
