//! A server to measure against: hyper and serde_json on one thread, the course's linear model.
//! The kind of server that the course's axum demo is (axum is a router on hyper).
//!
//! Start: predict PORT

use hyper::service::{make_service_fn, service_fn};
use hyper::{body, Body, Method, Request, Response, Server, StatusCode};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Instant;

const WEIGHTS: [f64; 5] = [0.5, -0.3, 0.8, -0.2, 0.4];
const BIAS: f64 = 0.1;

#[derive(Deserialize)]
struct PredictRequest {
    inputs: Vec<Vec<f64>>,
}

#[derive(Serialize)]
struct PredictResponse {
    predictions: Vec<f64>,
    model: &'static str,
    version: &'static str,
    latency_ms: f64,
}

fn score(row: &[f64]) -> f64 {
    row.iter().zip(WEIGHTS).map(|(x, w)| x * w).sum::<f64>() + BIAS
}

fn status(code: StatusCode) -> Response<Body> {
    Response::builder().status(code).body(Body::empty()).unwrap()
}

async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    if request.method() != Method::POST || request.uri().path() != "/v1/predict" {
        return Ok(status(StatusCode::NOT_FOUND));
    }
    let start = Instant::now();
    let Ok(bytes) = body::to_bytes(request.into_body()).await else {
        return Ok(status(StatusCode::BAD_REQUEST));
    };
    let Ok(request) = serde_json::from_slice::<PredictRequest>(&bytes) else {
        return Ok(status(StatusCode::BAD_REQUEST));
    };
    let response = PredictResponse {
        predictions: request.inputs.iter().map(|row| score(row)).collect(),
        model: "fraud-detector",
        version: "1.0.0",
        latency_ms: start.elapsed().as_secs_f64() * 1e3,
    };
    let text = serde_json::to_vec(&response).unwrap();
    Ok(Response::builder().header("content-type", "application/json").body(Body::from(text)).unwrap())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: predict PORT");
    let service = make_service_fn(|_| async { Ok::<_, Infallible>(service_fn(answer)) });
    Server::bind(&SocketAddr::from(([127, 0, 0, 1], port))).tcp_nodelay(true).serve(service).await.unwrap();
}
