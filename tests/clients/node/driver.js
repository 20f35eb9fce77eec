'use strict';
// Drives the official Node client for the scenarios of the test crate. The words on the command line and on stdout are
// those of tests/clients/python/driver.py. A thread of the others is a loop of promises here.

const { emit, failure, stop } = require('./events');
const { consumeLite, consumePush, consumeSimple } = require('./consuming');
const { produce, recall, transaction } = require('./producing');

const SCENARIOS = {
  produce,
  transaction,
  recall,
  'consume-simple': consumeSimple,
  'consume-push': consumePush,
  'consume-lite': consumeLite,
};

/** The command line: a scenario, then pairs of `--name value`. */
class Options {
  constructor(words) {
    if (words.length % 2 !== 0) {
      throw new Error('usage: SCENARIO [--name value]...');
    }
    this.values = new Map();
    for (let i = 0; i < words.length; i += 2) {
      this.values.set(words[i].replace(/^--/, ''), words[i + 1]);
    }
  }

  has(name) {
    return this.values.has(name);
  }

  setDefault(name, value) {
    this.values.set(name, this.text(name, value));
  }

  text(name, fallback) {
    const value = this.values.get(name) ?? fallback;
    if (value === undefined) {
      throw new Error(`--${name} is required`);
    }
    return value;
  }

  number(name, fallback) {
    return Number(this.text(name, fallback));
  }
}

async function main() {
  const [ scenario, ...words ] = process.argv.slice(2);
  process.stdin.on('end', stop).resume();
  // The client leaves some promises to themselves; what matters to a scenario is awaited there.
  process.on('unhandledRejection', error => console.error('unhandled rejection:', error));
  if (!SCENARIOS[scenario]) {
    emit('unsupported', { name: scenario });
    return;
  }
  await SCENARIOS[scenario](new Options(words));
  emit('done');
}

// Timers and long polls of the client would keep the process alive.
main().then(
  () => process.stdout.write('', () => process.exit(0)),
  error => {
    emit('fatal', failure(error));
    process.stdout.write('', () => process.exit(1));
  },
);
