// What the programs of this folder share: `node FILE.js T01` runs scenario T01 on Node's own cluster module and prints
// one line of JSON: {"holds": whether Node does what the scenario asks, "said": what was seen}.
//
// A scenario is {primary, worker}: both run in this file, as Node programs do; `primary` returns [holds, said].
'use strict';

const cluster = require('node:cluster');
const http = require('node:http');
const net = require('node:net');

const LIMIT_MS = 15000; // no scenario takes half of it; a wait that never ends is a result, not a hang of ours

// The arguments of the next event of this name, or undefined after `limit_ms`.
function event(emitter, name, limit_ms = LIMIT_MS) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, limit_ms);
    emitter.once(name, (...args) => {
      clearTimeout(timer);
      resolve(args);
    });
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Wait until a condition holds; returns whether it did in time.
async function until(condition, limit_ms = LIMIT_MS) {
  const end = Date.now() + limit_ms;
  while (!condition()) {
    if (Date.now() > end) return false;
    await pause(5);
  }
  return true;
}

// Fork `count` workers; resolves with them when each listens.
async function listening(count, env = {}) {
  const workers = Array.from({ length: count }, () => cluster.fork(env));
  const addresses = await Promise.all(workers.map((worker) => event(worker, 'listening')));
  workers.forEach((worker, index) => (worker.port = addresses[index][0].port));
  return workers;
}

// The body of an answer, or the code of the error that came instead of it.
function get(port, path = '/', { host = '127.0.0.1', limit_ms = 5000, agent = false } = {}) {
  return new Promise((resolve) => {
    const options = port.path ? { socketPath: port.path, path } : { port, host, path };
    const request = http.get({ ...options, agent, timeout: limit_ms }, (response) => {
      let body = '';
      response.on('data', (data) => (body += data));
      response.on('end', () => resolve(body));
      response.on('error', (error) => resolve(error.code));
    });
    request.on('timeout', () => request.destroy(Object.assign(new Error('late'), { code: 'no answer' })));
    request.on('error', (error) => resolve(error.code));
  });
}

// A connected socket, or undefined.
function connect(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => resolve(socket));
    socket.on('error', () => resolve(undefined));
  });
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

// The commonest worker: an HTTP server on any port that answers with its id.
function serve(answer = (request, response) => response.end(String(cluster.worker.id)), port = 0) {
  return http.createServer(answer).listen(port, '127.0.0.1');
}

async function run(scenarios) {
  const name = process.argv[2];
  const { primary, worker } = scenarios[name];
  if (cluster.isWorker || process.argv[3]) {
    await (worker ?? serve)();
    return;
  }
  const timer = setTimeout(() => finish([false, 'nothing for 15 s']), LIMIT_MS);
  finish(await primary());

  function finish([holds, said]) {
    clearTimeout(timer);
    process.stdout.write(JSON.stringify({ holds, said }) + '\n', () => {
      for (const left of Object.values(cluster.workers)) left.process.kill('SIGKILL');
      process.exit(0);
    });
  }
}

module.exports = { cluster, connect, event, get, isAlive, listening, pause, run, serve, until };
